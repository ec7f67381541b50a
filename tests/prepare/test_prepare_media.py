"""Which vocabulary goes with which codecs."""

import dataclasses

import pytest

from aromni_jax.codecs import TokenizerJson
from aromni_jax.errors import UserError
from aromni_jax.prepare import Codecs
from aromni_jax.vocabulary import JointVocabulary


def test_a_tokenizer_json_goes_with_the_official_layout(fake_codecs):
    image = dataclasses.replace(fake_codecs.image, num_codes=8192, tokens_per_image=1024)
    speech = dataclasses.replace(fake_codecs.speech, num_codes=4096)
    text = TokenizerJson(None, "3" * 16)
    assert Codecs(text, image, speech).vocabulary == JointVocabulary.aromni()
    with pytest.raises(UserError, match=r"official layout, .* and these have .*'image_tokens': 32"):
        Codecs(text, fake_codecs.image, speech).vocabulary  # noqa: B018
    assert fake_codecs.vocabulary.image_tokens == 32


def test_every_codec_is_named():
    with pytest.raises(UserError, match="no image and no speech codec is named"):
        Codecs.load({"text": "numbers"})
