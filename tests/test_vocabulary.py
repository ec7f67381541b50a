import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import TASKS, JointVocabulary, Modality, task_id

SMALL = JointVocabulary.compact(text_pieces=10, image_codes=6, image_tokens=3, speech_codes=5)
IMAGE = [SMALL.boi, *SMALL.image_ids([0, 5, 2]), SMALL.eoi]
SPEECH = [SMALL.boa, *SMALL.speech_ids([4, 0]), SMALL.eoa]


def test_official_layout_is_the_one_of_spec_1():
    v = JointVocabulary.aromni()
    assert (v.size, v.bos, v.pad, v.eos) == (65536, 0, 1, 2)
    assert (v.image_ids([0, 8191]) == [4, 8195]).all() and (v.eoi, v.boi) == (8196, 8197)
    assert (v.speech_ids([0, 4095]) == [8724, 12819]).all() and (v.eoa, v.boa) == (12820, 12821)
    assert (v.eoh, v.eom, v.ins, v.res, v.image_tokens) == (12830, 12831, 12840, 12841, 1024)


def test_task_ids_are_the_references():
    assert [task_id(name) for name in TASKS[:7]] == list(range(7))
    assert (task_id("image_caption"), task_id("speech_to_text"), task_id("text_to_image")) == (0, 1, 2)
    with pytest.raises(UserError, match="unknown task 'asr'"):
        task_id("asr")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 300))
def test_compact_gives_every_id_one_meaning(text, image, per_picture, speech):
    v = JointVocabulary.compact(text_pieces=text, image_codes=image, image_tokens=per_picture, speech_codes=speech)
    kinds = v.modality(np.arange(v.size))
    counts = [int((kinds == kind).sum()) for kind in Modality]
    assert counts == [text, image, speech, len(v.markers)]
    assert JointVocabulary.from_dict(v.to_dict()) == v
    assert (v.image_codes(v.image_ids(range(image))) == np.arange(image)).all()
    assert (v.text_pieces(v.text_ids(range(text))) == np.arange(text)).all()


def test_fingerprint_tells_layouts_apart():
    other = JointVocabulary.compact(text_pieces=10, image_codes=6, image_tokens=2, speech_codes=5)
    assert SMALL.fingerprint() != other.fingerprint() == other.fingerprint()


def test_well_formed_streams_pass():
    for tokens in (
        [],
        [SMALL.bos, SMALL.text.start, *IMAGE, *SPEECH, SMALL.eos],
        [SMALL.boa, SMALL.eoa],
        IMAGE * 2,
    ):
        SMALL.check(tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([SMALL.size], "id 33 at position 0 is outside 0..32"),
        ([-1], "outside"),
        (IMAGE[:-1], "not closed by eoi at 4"),
        (IMAGE[:3] + IMAGE[4:], "holds 2 codes, not 3"),
        (IMAGE[:-1] + [SMALL.image.start, SMALL.eoi], "not closed"),
        ([SMALL.image.start], "outside an image or speech span"),
        ([SMALL.eoa], "outside an image or speech span"),
        (SPEECH[:-1], "meets the end"),
        (SPEECH[:-1] + [SMALL.text.start, SMALL.eoa], "meets id"),
        ([SMALL.boa, *IMAGE, SMALL.eoa], "not eoa"),
    ],
)
def test_ill_formed_streams_are_refused(tokens, message):
    with pytest.raises(UserError, match=message) as caught:
        SMALL.check(tokens, where="shard.rows, record 7")
    assert str(caught.value).startswith("shard.rows, record 7: ")


@pytest.mark.parametrize("codes", [[-1], [6], [0, 99]])
def test_codes_outside_the_codebook_are_refused(codes):
    with pytest.raises(UserError, match="image code"):
        SMALL.image_ids(codes)


def test_from_dict_names_the_odd_field():
    with pytest.raises(UserError, match="colour"):
        JointVocabulary.from_dict(SMALL.to_dict() | {"colour": 3})
