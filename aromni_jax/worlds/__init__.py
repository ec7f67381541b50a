"""Small worlds: raw media with exact transcripts, from which records are prepared."""
