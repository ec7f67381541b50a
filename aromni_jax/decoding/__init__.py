"""Decoding: the grammar in the scan carry, sampling, guidance, and the engine that streams."""

from aromni_jax.decoding.engine import Engine
from aromni_jax.decoding.grammar import Grammar, Limits, State
from aromni_jax.decoding.guidance import Guidance
from aromni_jax.decoding.request import (
    Done,
    Event,
    ImageDone,
    ImageRows,
    Request,
    Result,
    Segment,
    SpeechChunk,
    StateChange,
    TextPiece,
    Usage,
)
from aromni_jax.decoding.sampling import GREEDY, Policy
from aromni_jax.decoding.session import Session
from aromni_jax.decoding.source import RequestQueue

__all__ = [
    "GREEDY",
    "Done",
    "Engine",
    "Event",
    "Grammar",
    "Guidance",
    "ImageDone",
    "ImageRows",
    "Limits",
    "Policy",
    "Request",
    "RequestQueue",
    "Result",
    "Segment",
    "Session",
    "SpeechChunk",
    "State",
    "StateChange",
    "TextPiece",
    "Usage",
]
