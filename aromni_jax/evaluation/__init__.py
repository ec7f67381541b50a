"""Scores, judges and reports."""
