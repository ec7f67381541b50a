"""The table of prompt layouts: what stands where in a prompt, per template and task.

A layout is a tuple of fragments. A `str` is literal text; it is encoded on its own and its ids are
concatenated, so no piece ever merges across fragments (SPEC 1.4). A `Slot` is filled by the prompt builder.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from aromni_jax.errors import UserError
from aromni_jax.tasks.parts import Image, Speech, Text
from aromni_jax.vocabulary import TASKS


class Slot(enum.Enum):
    """A place in a layout that the prompt builder fills."""

    INSTRUCTION = "instruction"  # the task's own; in a chat turn, the text appended to the user's media
    TEXT = "text"
    SPEECH = "speech"  # [boa] codes [eoa]
    IMAGE = "image"  # [boi] codes [eoi]; in a chat turn, any number of them
    EOH = "eoh"


Layout = tuple[str | Slot, ...]
Kind = type[Text] | type[Speech] | type[Image]

# What goes in and what comes out of each task; a chat takes any input and answers in the shape of SPEC 2.4.
TASK_KINDS: Mapping[str, tuple[Kind, Kind]] = {
    "image_caption": (Image, Text),
    "speech_to_text": (Speech, Text),
    "text_to_image": (Text, Image),
    "text_to_speech": (Text, Speech),
    "image_to_text": (Image, Text),
    "speech_to_image": (Speech, Image),
    "text_to_text": (Text, Text),
    "image_to_speech": (Image, Speech),
}


@dataclasses.dataclass(frozen=True)
class Template:
    """Layouts and default instructions of all tasks; bos is set once by the builder, before the layout."""

    name: str
    layouts: Mapping[str, Layout]
    instructions: Mapping[str, str]

    def __post_init__(self) -> None:
        if set(self.layouts) != set(TASKS) or set(self.instructions) != set(TASKS):
            raise ValueError(f"template {self.name} must have a layout and an instruction for each task")


_I, _T, _S, _V, _EOH = Slot.INSTRUCTION, Slot.TEXT, Slot.SPEECH, Slot.IMAGE, Slot.EOH

# SPEC 2.3 and 2.4, to the blank: text_to_image has " This is input: " and " GPT:", text_to_speech has neither
# leading blank. The reference gives no prompt for the other tasks; they follow the task with the same input.
_AROMNI_FROM_IMAGE: Layout = ("USER:", _V, _I, _EOH, "GPT:")
_AROMNI_FROM_SPEECH: Layout = ("USER:", _I, _S, _EOH, "GPT:")
_AROMNI_FROM_TEXT: Layout = ("USER:", _I, "This is input: ", _T, _EOH, "GPT:")

AROMNI = Template(
    name="aromni",
    layouts={
        "image_caption": _AROMNI_FROM_IMAGE,
        "speech_to_text": _AROMNI_FROM_SPEECH,
        "text_to_image": ("USER:", _I, " This is input: ", _T, _EOH, " GPT:"),
        "text_to_speech": _AROMNI_FROM_TEXT,
        "image_to_text": _AROMNI_FROM_IMAGE,
        "speech_to_image": _AROMNI_FROM_SPEECH,
        "text_to_text": _AROMNI_FROM_TEXT,
        "image_to_speech": _AROMNI_FROM_IMAGE,
        "chat": ("USER:", _V, _S, _T, _I, _EOH, "GPT:"),
    },
    instructions={
        "image_caption": "Describe this image.",
        "speech_to_text": "Can you please convert this speech into written text?",
        "text_to_image": "Create a picture that matches the essence of this text.",
        "text_to_speech": "Convert this text into speech.",
        "image_to_text": "Describe this image.",
        "speech_to_image": "Create a picture that matches this speech.",
        "text_to_text": "Answer this text.",
        "image_to_speech": "Describe this image in speech.",
        "chat": "Please acknowledge the user's vocal input, create a textual response.",
    },
)

# One word per task, for small worlds where every prompt token costs training time.
BRIEF = Template(
    name="brief",
    layouts=dict.fromkeys(TASKS, (_I, _V, _S, _T, _EOH)),
    instructions={
        "image_caption": "describe",
        "speech_to_text": "transcribe",
        "text_to_image": "draw",
        "text_to_speech": "say",
        "image_to_text": "read",
        "speech_to_image": "show",
        "text_to_text": "repeat",
        "image_to_speech": "tell",
        "chat": "chat",
    },
)

TEMPLATES: Mapping[str, Template] = {template.name: template for template in (AROMNI, BRIEF)}


def get_template(name: str) -> Template:
    """The template of that name; `UserError` when there is none."""
    if name not in TEMPLATES:
        raise UserError(f"unknown template {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
