"""Files that belong to a model and not to the format of its weights: tokenizer, image codec, processor settings."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

# Known by name only: a folder may hold anything beside its weights.
_NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "preprocessor_config.json",
    "processor_config.json", "chat_template.json", "chat_template.jinja", "text_tokenizer.json", "vqgan.yaml",
    "vqgan.ckpt", "hf_config.json",
)  # fmt: skip
HF_CONFIG = "hf_config.json"  # what another config.json said; travels so that going back restores it
_IMAGE, _RESERVED = "<image>", "<reserved08707>"  # Hugging Face's conversion renames one reserved token (SPEC 1.1)
_LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789")


def find_assets(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Assets by name that lie in a folder; none if there is no folder."""
    return {name: folder / name for name in _NAMES if (folder / name).is_file()}


def write_assets(folder: pathlib.Path, assets: Mapping[str, pathlib.Path], without: tuple[str, ...] = ()) -> None:
    """Copy assets into a folder, made when there is one to copy."""
    for name, file in assets.items():
        if name not in without:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)


def renamed_tokenizer(file: pathlib.Path, *, to_hf: bool) -> str:
    """A tokenizer file as Hugging Face (`<image>`) or Meta (`<reserved08707>`) has it, from either."""
    text = file.read_text(encoding="utf-8")
    old, new = (_RESERVED, _IMAGE) if to_hf else (_IMAGE, _RESERVED)
    return text.replace(json.dumps(old), json.dumps(new))


def token_ids(assets: Mapping[str, pathlib.Path]) -> tuple[dict[str, int], pathlib.Path] | None:
    """Token name -> id, and the file that says so; None if no asset does.

    Raises:
      UserError: a file that should say so and does not.
    """
    for name, keys in (
        ("tokenizer.json", ("model", "vocab")),
        ("text_tokenizer.json", ("model", "vocab")),
        (HF_CONFIG, ("vocabulary_map",)),
    ):
        if name not in assets:
            continue
        values: Any = read_object(assets[name])
        for key in keys:
            values = values.get(key) if isinstance(values, dict) else None
        if isinstance(values, dict) and values:
            return {token: int(number) for token, number in values.items()}, assets[name]
        if isinstance(values, list):  # a unigram model: a list of [piece, score], the place is the id
            return {entry[0]: number for number, entry in enumerate(values)}, assets[name]
    return None


def check_token_ids(ids: Mapping[str, int], vocabulary: JointVocabulary, file: pathlib.Path) -> int:
    """Compare the names of SPEC 1 with the ids that the vocabulary gives them; returns how many were compared.

    Image names count codes in letters (SPEC 1.2): id = code + start of the image range, which the reference assumes
    when it decodes; `<reservedN>` is N + 4 wherever it occurs.

    Raises:
      UserError: a name with another id, naming file, token and both ids.
    """
    controls = {"<s>": vocabulary.bos, "<pad>": vocabulary.pad, "</s>": vocabulary.eos, "<unk>": vocabulary.unk}
    markers = {"<eoss>": vocabulary.eoi, "<racm3:break>": vocabulary.boi}
    compared = 0
    for name, number in ids.items():
        wanted = controls.get(name, markers.get(name))
        if found := re.fullmatch(r"IMGIMG([A-J]+)Z", name):
            wanted = int(found[1].translate(_LETTERS)) + vocabulary.image.start
        elif found := re.fullmatch(r"<reserved(\d{5})>", name):
            wanted = int(found[1]) + 4
        if wanted is None:
            continue
        if number != wanted:
            raise UserError(
                f"{file}: token {name} has id {number}, expected {wanted}; this is not the vocabulary that images and "
                "speech are coded with (id = code + 4)"
            )
        compared += 1
    return compared


def image_name(code: int) -> str:
    """SPEC 1.2: 53 -> "IMGIMGFDZ"."""
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """A JSON object; UserError if it is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: not a JSON object")
    return values
