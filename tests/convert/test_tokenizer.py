"""The tokenizer of an exported folder cuts text as the text codec does, into joint ids."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.codecs import TextCodec
from aromni_jax.convert import convert, open_source
from aromni_jax.convert.tokenizer import tokenizer_json

CODEC = TextCodec.load("numbers")
VOCABULARY = open_source("numbers").vocabulary
TOKENIZER = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(VOCABULARY, CODEC)))
WORDS = st.sampled_from(
    ["three", "seven", "draw", "chat", "zero", "teen", "s", "x", " ", "  ", "\n", "é", "日", "ones", "?"]
)


@given(st.lists(WORDS, max_size=9).map("".join) | st.text(st.characters(exclude_characters="\u2581<", codec="utf-8")))
def test_ids_and_text_are_those_of_the_codec(text):
    """But for the names of markers in a text, and the sign that stands for a blank."""
    if "\0" in text:
        return
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert ids == VOCABULARY.text_ids(CODEC.encode(text)).tolist()
    assert TOKENIZER.decode(ids) == text


def test_names_have_the_ids_of_the_vocabulary():
    assert TOKENIZER.token_to_id("<s>") == VOCABULARY.bos and TOKENIZER.token_to_id("<boa>") == VOCABULARY.boa
    assert TOKENIZER.token_to_id("IMGIMGBAZ") == VOCABULARY.image.start + 10
    assert TOKENIZER.token_to_id("<speech 7>") == VOCABULARY.speech.start + 7
    assert TOKENIZER.get_vocab_size() == VOCABULARY.size


def test_transformers_opens_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    with open_source("numbers") as source:
        convert(source, tmp_path / "hf", "hf")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = opened("four two", add_special_tokens=False)["input_ids"]
    assert ids == VOCABULARY.text_ids(CODEC.encode("four two")).tolist()
    assert opened.bos_token_id == VOCABULARY.bos and opened.eos_token_id == VOCABULARY.eos
