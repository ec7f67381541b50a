"""Prompt formats and answers: what the nine tasks look like as tokens, and how tokens become media again."""

from aromni_jax.tasks.answers import Answer, Media, read_answer, to_media
from aromni_jax.tasks.parts import Image, Part, Speech, Text
from aromni_jax.tasks.prompts import PromptBuilder
from aromni_jax.tasks.templates import TASK_KINDS, TEMPLATES, Template, get_template

__all__ = [
    "TASK_KINDS",
    "TEMPLATES",
    "Answer",
    "Image",
    "Media",
    "Part",
    "PromptBuilder",
    "Speech",
    "Template",
    "Text",
    "get_template",
    "read_answer",
    "to_media",
]
