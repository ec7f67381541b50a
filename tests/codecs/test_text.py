"""The text codec is exact for every Unicode text, and gives one piece per word of the world."""

import hypothesis
import hypothesis.strategies as st
import pytest

from aromni_jax.codecs import TextCodec
from aromni_jax.codecs.text import corpus, train_text
from aromni_jax.codecs.train import SENTENCES
from aromni_jax.errors import UserError
from aromni_jax.worlds.numbers import NumbersWorld


@pytest.fixture(scope="module")
def codec():
    return TextCodec.load("numbers")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(TEXTS | st.text(" \u2581\0ab\n<0x1>unk", max_size=20))
def test_round_trip_is_exact(text):
    codec = TextCodec.load("numbers")
    pieces = codec.encode(text)
    assert all(0 <= piece < codec.num_pieces for piece in pieces)
    assert codec.decode(pieces) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  two", "two ", "a  b", "\u2581", "\0", "\r\n\t", "<unk>", "<0x41>", "ﬁ Å e\u0301", "二三", "🙂"]
)
def test_awkward_texts(codec, text):
    assert codec.decode(codec.encode(text)) == text


def test_words_of_the_world_are_single_pieces_anywhere(codec):
    world = NumbersWorld.load()
    for string in world.strings("train") + world.strings("test"):
        assert len(codec.encode(world.text(string))) == 2
    assert codec.encode("two three") == codec.encode("two") + codec.encode("three")
    for line in corpus(SENTENCES):
        if line.isalpha():
            assert len(codec.encode(line)) == 1


def test_any_pieces_decode(codec):
    everything = list(range(codec.num_pieces))
    assert isinstance(codec.decode(everything), str)
    assert codec.decode([codec.encode("é")[-1]]) == "\ufffd"


@pytest.mark.parametrize("piece", [-1, 10_000])
def test_a_piece_out_of_range(codec, piece):
    with pytest.raises(UserError, match="outside"):
        codec.decode([piece])


def test_lone_surrogate(codec):
    with pytest.raises(UserError, match="character 1"):
        codec.encode("a\ud800")


def test_training_is_reproducible():
    sentences = corpus(SENTENCES)
    first, second = (train_text(sentences, 384, ["two"], seed=0) for _ in range(2))
    assert first == second


def test_too_few_pieces():
    with pytest.raises(UserError, match="260 pieces"):
        train_text(["abcdefgh ijkl"] * 10, 260, [], seed=0)
