"""Codecs of the numbers world's shapes that cost nothing: codes are a cheap function of the media."""

import dataclasses

import numpy as np
import pytest

from aromni_jax.codecs import TextCodec
from aromni_jax.prepare import Codecs
from tests.prepare import corpora


@dataclasses.dataclass
class FakeImageCodec:
    num_codes: int = 128
    tokens_per_image: int = 32
    fingerprint: str = "1" * 16

    def encode(self, images):
        """Mean brightness of each 7x7 patch."""
        patches = images.reshape(len(images), 4, 7, 8, 7).mean(axis=(2, 4))
        return (patches / 2).astype(np.int32).reshape(len(images), 32)


@dataclasses.dataclass
class FakeSpeechCodec:
    num_codes: int = 256
    tokens_per_second: float = 40.0
    fingerprint: str = "2" * 16

    def encode(self, wave_bn, lengths):
        """Peak of each 25 ms."""
        rows = []
        for wave, length in zip(wave_bn, lengths, strict=True):
            assert not wave[length:].any()
            hops = np.pad(wave[:length], (0, -length % 400)).reshape(-1, 400)
            rows.append((np.abs(hops).max(axis=1) * 255).astype(np.int32))
        return rows


@pytest.fixture(scope="session")
def fake_codecs():
    return Codecs(TextCodec.load("numbers"), FakeImageCodec(), FakeSpeechCodec())


@pytest.fixture(scope="session")
def folder_set(tmp_path_factory):
    """(data set, manifest, media): captioned pictures and transcribed sounds, with the codecs of the numbers world."""
    folder = tmp_path_factory.mktemp("folder")
    place = corpora.side_by_side(folder / "media")
    return folder / "data", corpora.prepare(place, folder / "data", items_per_shard=5), place
