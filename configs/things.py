"""The things world: the recipe of the numbers world for longer sentences, coloured pictures and more words.

configs/things.py:demo     what `make demo WORLD=things` trains: about half an hour on two cores
configs/things.py:shipped  the same recipe for longer: the checkpoint that comes with the package
configs/things.py:tiny     seconds: tests and first looks
"""

import pathlib
import runpy

import ml_collections

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

# Sizes of the codecs that are shipped with the world.
VOCABULARY = JointVocabulary.compact(text_pieces=512, image_codes=512, image_tokens=64, speech_codes=512)

_numbers = runpy.run_path(str(pathlib.Path(__file__).with_name("numbers.py")))["get_config"]


def get_config(arg: str = "demo") -> ml_collections.ConfigDict:
    """`arg`: demo (also when empty), shipped or tiny."""
    if arg not in ("", "demo", "shipped", "tiny"):
        raise UserError(f"configs/things.py: unknown variant {arg!r}: use demo, shipped or tiny")
    config = _numbers(arg)
    config.world = "things"
    config.model.vocab_size = VOCABULARY.size
    config.data.path = f"runs/{arg or 'demo'}-things/data"
    config.data.sequence_length = 512
    if arg == "tiny":
        return config
    config.model.dim = 256
    config.model.layers = 5
    config.model.heads = 8
    config.model.kv_heads = 4
    config.model.ffn_dim = 704
    config.train.steps = 3600 if arg == "shipped" else 2500
    return config
