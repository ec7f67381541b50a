"""Codecs that are easy to check by hand, and a model of random weights for their vocabulary."""

import types

import jax
import numpy as np
import PIL.Image

from aromni_jax.codecs.streaming import SpeechStream
from aromni_jax.config import ModelConfig
from aromni_jax.model import init_params
from aromni_jax.tasks import Assistant
from aromni_jax.vocabulary import JointVocabulary

V = JointVocabulary.compact(text_pieces=256, image_codes=6, image_tokens=4, speech_codes=9)
CONFIG = ModelConfig(
    vocab_size=V.size, dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_positions=256
)


class Letters:
    """One piece per byte."""

    num_pieces, fingerprint = 256, "letters"

    def encode(self, text):
        return list(text.encode())

    def decode(self, pieces):
        return bytes(pieces).decode(errors="replace")


class Loudness:
    """One code per 4 samples, the last of which may be missing: their mean."""

    num_codes, hop, sample_rate, fingerprint = 9, 4, 160, "loudness"

    def encode(self, wave_bn, lengths):
        rows = [np.pad(wave[:n], (0, -n % 4)) for wave, n in zip(wave_bn, lengths, strict=True)]
        return [np.abs(row).reshape(-1, 4).mean(1).round().astype(np.int32) for row in rows]

    def decode(self, codes, width=None):
        return [np.repeat(np.asarray(row, np.float32), 4) for row in codes]

    def stream(self):
        return SpeechStream(self)


class Pixels:
    """One code per pixel of a 2x2 picture."""

    num_codes, tokens_per_image, fingerprint = 6, 4, "pixels"

    def encode(self, images):
        return np.stack([np.asarray(image.convert("L"), np.int32).reshape(4) // 40 for image in images])

    def to_pil(self, codes):
        return [PIL.Image.fromarray((row.reshape(2, 2) * 40).astype(np.uint8)) for row in codes]


def toy_model():
    """Of random weights; a context of 256."""
    return types.SimpleNamespace(params=init_params(CONFIG, jax.random.PRNGKey(0)), config=CONFIG, vocabulary=V)


def toy_assistant(**changes):
    """Of all three codecs, four items at once."""
    codecs = {"text_codec": Letters(), "image_codec": Pixels(), "speech_codec": Loudness()}
    given = {"model": toy_model(), **codecs, "template": "brief", "max_batch": 4, **changes}
    return Assistant(given.pop("model"), **given)
