"""Prompt formats and answers: what the nine tasks look like as tokens, and how tokens become media again."""

from aromni_jax.tasks.answers import Answer, Dropped, Media, Reply, read_answer, to_media
from aromni_jax.tasks.assistant import Assistant
from aromni_jax.tasks.dialog import TurnDone
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.requests import Options, make_request, task_options
from aromni_jax.tasks.templates import TASK_KINDS, TEMPLATES, Template, get_template

__all__ = [
    "TASK_KINDS",
    "TEMPLATES",
    "Answer",
    "Assistant",
    "Dropped",
    "Image",
    "Media",
    "Options",
    "Part",
    "PromptBuilder",
    "Reply",
    "Speech",
    "Template",
    "Text",
    "TurnDone",
    "get_template",
    "make_request",
    "read_answer",
    "task_options",
    "to_media",
]
