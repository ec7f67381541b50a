"""The tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import pathlib
from typing import Any

from aromni_jax import store
from aromni_jax.codecs import TextCodec
from aromni_jax.convert.assets import image_name, renamed_tokenizer
from aromni_jax.convert.source import Source
from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

_SPACE = "\u2581"  # how SentencePiece spells a blank inside pieces
_NAMES = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "eoi": "<eoss>", "boi": "<racm3:break>"}
_NEVER = -1e6  # log-probability of names that stand for something else than text


_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
}  # fmt: skip


def write_tokenizer(folder: pathlib.Path, source: Source) -> None:
    """What a folder still lacks: `tokenizer.json` from Meta's file or from the text codec of the model's world.

    Where a model brings neither, nothing is written; it still loads, and takes ids.
    """
    file, world = folder / "tokenizer.json", source.metadata.get("world")
    if not file.is_file() and "text_tokenizer.json" in source.assets:
        store.write_text(file, renamed_tokenizer(source.assets["text_tokenizer.json"], to_hf=True))
    elif not file.is_file() and isinstance(world, str):
        try:
            codec = TextCodec.load(world)
        except UserError as error:
            source.warnings.append(f"no tokenizer is written: {error}")
            return
        if codec.num_pieces == len(source.vocabulary.text):
            store.write_json(file, tokenizer_json(source.vocabulary, codec))
    if file.is_file() and not (folder / "tokenizer_config.json").is_file():
        store.write_json(folder / "tokenizer_config.json", _CONFIG)


def tokenizer_json(vocabulary: JointVocabulary, codec: TextCodec) -> dict[str, Any]:
    """What `tokenizers` reads for a SentencePiece codec: its ids are the joint ids, `encode` and `decode` the codec's.

    Names are those of SPEC 1 where it has one (image codes, controls), and `<boa>`, `<speech 17>` elsewhere; blanks are
    replaced before pieces are looked for, so no text can spell the latter. Text that spells the name of an image code
    or of a marker means it, as with Chameleon's own tokenizer.
    """
    names: dict[int, str] = {token: _NAMES.get(name, f"<{name}>") for name, token in vocabulary.markers.items()}
    names |= {vocabulary.image.start + code: image_name(code) for code in range(len(vocabulary.image))}
    names |= {vocabulary.speech.start + code: f"<speech {code}>" for code in range(len(vocabulary.speech))}
    table: list[list[Any]] = [[names.get(token, f"<unused {token}>"), _NEVER] for token in range(vocabulary.size)]
    for piece in range(codec.num_pieces):
        spelled, score = codec.processor.id_to_piece(piece), codec.processor.get_score(piece)
        if codec.processor.is_unknown(piece):
            spelled, score = f"<unused {piece + vocabulary.text_offset}>", _NEVER  # the joint vocabulary has its own
        elif codec.processor.is_byte(piece):
            score = _NEVER  # found by its name, where nothing else fits
        table[piece + vocabulary.text_offset] = [spelled, score]
    added = [_special(token, table[token][0]) for token in sorted(vocabulary.markers.values())]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "Unigram", "unk_id": vocabulary.unk, "vocab": table, "byte_fallback": True},
    }


def _special(token: int, content: str) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": True, **off}
