"""Files that belong to a model and not to the format of its weights: tokenizer, image codec, processor settings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Mapping

from aromni_jax.convert.fields import Fields
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import OFFICIAL_IMAGE_NAME, JointVocabulary

# Known by name only: a folder may hold anything beside its weights.
VQGAN = "vqgan.ckpt"
HF_CONFIG = "hf_config.json"  # what another config.json said; travels so that going back restores it
_NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "preprocessor_config.json",
    "processor_config.json", "chat_template.json", "chat_template.jinja", "text_tokenizer.json", "vqgan.yaml", VQGAN,
    HF_CONFIG, "LICENSE", "LICENSE.txt", "USE_POLICY.md",
)  # fmt: skip
_IMAGE, _RESERVED = "<image>", "<reserved08707>"  # renamed by Hugging Face's conversion (SPEC 1.1)
_LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789")


@dataclasses.dataclass(frozen=True)
class Compared:
    """How many names of a file were compared with the vocabulary, and how many of them are of image codes."""

    file: pathlib.Path
    names: int
    images: int


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
    """A tokenizer file as Hugging Face (`<image>`) or Meta (`<reserved08707>`) has it, from either.

    Only the official vocabulary has that token; the file of another is returned as it is.
    """
    text = file.read_text(encoding="utf-8")
    old, new = (_RESERVED, _IMAGE) if to_hf else (_IMAGE, _RESERVED)
    if _names(Fields.read(file)).get(old) != OFFICIAL_IMAGE_NAME:
        return text
    return text.replace(json.dumps(old), json.dumps(new))


def token_ids(assets: Mapping[str, pathlib.Path]) -> dict[pathlib.Path, dict[str, int]]:
    """Of every asset that says so: token name -> id.

    Raises:
      UserError: an asset that is damaged.
    """
    tokenizers = ("tokenizer.json", "text_tokenizer.json")
    found = {assets[name]: _names(Fields.read(assets[name])) for name in tokenizers if name in assets}
    if HF_CONFIG in assets:
        named = Fields.read(assets[HF_CONFIG]).object("vocabulary_map")
        found[assets[HF_CONFIG]] = {name: named.integer(name, least=0) for name in named.values}
    return {file: ids for file, ids in found.items() if ids}


def check_token_ids(assets: Mapping[str, pathlib.Path], vocabulary: JointVocabulary) -> list[Compared]:
    """Compare the names of SPEC 1, wherever an asset has them, with the ids that the vocabulary gives them.

    Image names count codes in letters (SPEC 1.2): id = code + start of the image range, which the reference assumes
    when it decodes; `<reservedN>` is N + 4 in the official layout.

    Raises:
      UserError: a name with another id, naming file, token and both ids.
    """
    return [_compare(file, ids, vocabulary) for file, ids in token_ids(assets).items()]


def _compare(file: pathlib.Path, ids: Mapping[str, int], vocabulary: JointVocabulary) -> Compared:
    wanted = {"<s>": vocabulary.bos, "<pad>": vocabulary.pad, "</s>": vocabulary.eos, "<unk>": vocabulary.unk}
    wanted |= {"<eoss>": vocabulary.eoi, "<racm3:break>": vocabulary.boi}
    images = 0
    for name in ids:
        if found := re.fullmatch(r"IMGIMG([A-J]{1,9})Z", name):
            wanted[name] = int(found[1].translate(_LETTERS)) + vocabulary.image.start
            images += 1
        elif found := re.fullmatch(r"<reserved(\d{5})>", name):
            wanted[name] = int(found[1]) + 4
    compared = [name for name in wanted if name in ids]
    for name in compared:
        if ids[name] != wanted[name]:
            raise UserError(
                f"{file}: token {name} has id {ids[name]}, expected {wanted[name]}; this is not the vocabulary that "
                "images and speech are coded with (id = code + 4)"
            )
    return Compared(file, len(compared), images)


def _names(tokenizer: Fields) -> dict[str, int]:
    """Token name -> id of a tokenizer.json: its model's table, and what was added to it."""
    table = tokenizer.object("model").values.get("vocab") or {}
    if isinstance(table, list):  # a unigram model: a list of [piece, score], the place is the id
        table = {entry[0]: at for at, entry in enumerate(table) if isinstance(entry, list) and entry}
    if not isinstance(table, dict):
        raise UserError(f"{tokenizer.where}: model.vocab is neither an object nor a list")
    named = Fields(table, f"{tokenizer.where}: model.vocab")
    ids = {name: named.integer(name, least=0) for name in table}
    added = tokenizer.values.get("added_tokens") or []
    for at, token in enumerate(added if isinstance(added, list) else []):
        fields = Fields(token if isinstance(token, dict) else {}, f"{tokenizer.where}: added_tokens {at}")
        ids[fields.text("content")] = fields.integer("id", least=0)
    return ids


def image_name(code: int) -> str:
    """SPEC 1.2: 53 -> "IMGIMGFDZ"."""
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"
