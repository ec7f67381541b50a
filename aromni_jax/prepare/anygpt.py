"""AnyGPT's data: JSON lines in which media are written as marker tokens of its own tokenizers.

    {"text": "a red ring", "image": "<soim><👀1736><👀680>...<eoim>"}
    {"text": "in passing i looked up", "speech": "<sosp><🗣️65><🗣️65>...<eosp>"}
    {"id": 1, "conversation": [[{"role": "user", "message": "<sosp>...<eosp> Please ..."}, {"role": "assistant",
        "message": "<-Ins-> what was said\\n <-Res-> the reply <sosp>...<eosp>"}]]}

Its codes mean nothing to other codecs, so a data set of it has a vocabulary of its own: pieces of a text codec of ours,
and pictures and speech of the sizes of SEED-2 and of SpeechTokenizer's first layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aromni_jax.prepare.items import Codes, Dialog, Item, Turn, Unusable

SIZES: Mapping[str, int] = {"image_codes": 8192, "image_tokens": 32, "speech_codes": 1024}
_IMAGE, _SPEECH = re.compile("<soim>(.*?)<eoim>"), re.compile("<sosp>(.*?)<eosp>")
_CODES = {_IMAGE: re.compile("<👀(\\d+)>"), _SPEECH: re.compile("<🗣️(\\d+)>")}
_ANSWER = re.compile(r"\s*<-Ins->(?P<transcript>.*?)<-Res->(?P<reply>.*)", re.DOTALL)


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is AnyGPT's: a conversation, or a medium written as its marker tokens."""
    if "conversation" in row:
        return True
    openings = {"image": "<soim>", "speech": "<sosp>", "music": "<somu>"}
    return any(isinstance(row.get(kind), str) and row[kind].lstrip().startswith(o) for kind, o in openings.items())


def item(row: Mapping[str, Any], file: str, record: str, split: str) -> Item | Dialog:
    """What a row holds; KeyError or `Unusable` for one that is not so."""
    if "conversation" in row:
        return Dialog(file, record, split, _turns(row["conversation"]))
    if "music" in row:
        raise Unusable("music", "no vocabulary of ours has it")
    image = _whole(_IMAGE, row["image"]) if "image" in row else None
    speech = _whole(_SPEECH, row["speech"]) if "speech" in row else None
    if not isinstance(row["text"], str):
        raise Unusable("bad text", f"{type(row['text']).__name__} where a text is expected")
    return Item(file, record, split, (row["text"],), image, speech)


def _whole(span: re.Pattern[str], text: Any) -> Codes:
    found = span.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise Unusable("bad marker tokens", f"{str(text)[:40]!r} is not one medium")
    return _codes(span, found[1])


def _codes(span: re.Pattern[str], body: str) -> Codes:
    token = _CODES[span]
    if token.sub("", body):
        raise Unusable("bad marker tokens", f"{token.sub('', body)[:40]!r} between them")
    return Codes(np.array([int(number) for number in token.findall(body)], np.int32))


def _turns(conversation: Any) -> tuple[Turn, ...]:
    try:
        rounds = [{entry["role"]: entry["message"] for entry in entries} for entries in conversation]
        pairs = [(entry["user"], entry["assistant"]) for entry in rounds]
    except (TypeError, KeyError) as error:
        raise Unusable("bad conversation", f"{error}; expected [[user, assistant], ...]") from None
    if not pairs:
        raise Unusable("bad conversation", "it has no turn")
    return tuple(_turn(user, answer) for user, answer in pairs)


def _turn(user: str, answer: str) -> Turn:
    said, speech, images = _taken_apart(user)
    shape = _ANSWER.fullmatch(answer)
    if shape is None:
        raise Unusable("bad conversation", "the answer is not <-Ins-> transcript <-Res-> reply")
    reply, answer_speech, answer_images = _taken_apart(shape["reply"])
    return Turn(speech, images, said, shape["transcript"].strip(), reply, answer_speech, answer_images)


def _taken_apart(message: str) -> tuple[str, tuple[Codes, ...], tuple[Codes, ...]]:
    """(text, speech, pictures) of a message."""
    speech = tuple(_codes(_SPEECH, body) for body in _SPEECH.findall(message))
    images = tuple(_codes(_IMAGE, body) for body in _IMAGE.findall(message))
    text = _IMAGE.sub(" ", _SPEECH.sub(" ", message))
    if "<so" in text or "<eo" in text:
        raise Unusable("bad marker tokens", "a medium is not closed, or is of another kind")
    return text.strip(), speech, images
