"""The numbers world: speech, pictures and text of numbers, on a laptop's CPU.

configs/numbers.py:demo     what `make demo` trains: minutes on two cores
configs/numbers.py:shipped  the same recipe for longer: the checkpoint that comes with the package
configs/numbers.py:tiny     seconds: tests and first looks
configs/numbers.py:tune     a minute: adapters teach the shipped model the long prompts of template "aromni"
"""

import ml_collections

from aromni_jax.errors import UserError
from aromni_jax.vocabulary import JointVocabulary

# Sizes of the codecs that are shipped with the world.
VOCABULARY = JointVocabulary.compact(text_pieces=384, image_codes=128, image_tokens=32, speech_codes=256)
CODEBOOK_WIDTH = 16


def get_config(arg: str = "demo") -> ml_collections.ConfigDict:
    """`arg`: demo (also when empty), shipped, tiny or tune."""
    config = ml_collections.ConfigDict()
    config.world = "numbers"
    config.template = "brief"

    config.model = ml_collections.ConfigDict()
    config.model.vocab_size = VOCABULARY.size
    config.model.dim = 192
    config.model.layers = 4
    config.model.heads = 6
    config.model.kv_heads = 3
    config.model.head_dim = 32
    config.model.ffn_dim = 512
    config.model.norm_order = "swin"
    config.model.max_positions = 1024
    config.model.perceptual_dim = CODEBOOK_WIDTH
    # What is fast on a CPU: layers one after the other, attention in blocks, and micro-batches that fit its caches
    # (their gradients add up to that of the whole batch exactly).
    config.model.scan_layers = False
    config.model.attention = "blocked"

    config.data = ml_collections.ConfigDict()
    config.data.path = "runs/demo/data"
    config.data.sequence_length = 256
    config.data.batch_size = 8

    config.loss = ml_collections.ConfigDict()
    # Every token of a prompt counts a tenth: the codes of a given utterance or picture are there to be read, and
    # learning to predict them costs most of the batch.
    config.loss.prompt_weight = 0.1
    config.loss.perceptual_weight = 0.1

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "muon"  # learns to draw and to speak in a third of AdamW's steps here
    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"
    config.optimizer.end_lr_ratio = 0.02
    config.optimizer.weight_decay = 0.05

    config.mesh = ml_collections.ConfigDict()
    config.mesh.replica = 1

    config.train = ml_collections.ConfigDict()
    config.train.steps = 2500
    config.train.accumulate_steps = 4
    config.train.log_every = 20
    config.train.eval_every = 250
    config.train.checkpoint_every = 500

    variants = {"": _demo, "demo": _demo, "shipped": _shipped, "tiny": _tiny, "tune": _tune}
    if arg not in variants:
        raise UserError(f"configs/numbers.py: unknown variant {arg!r}: use demo, shipped, tiny or tune")
    variants[arg](config)
    return config


def _demo(config: ml_collections.ConfigDict) -> None:
    del config


def _shipped(config: ml_collections.ConfigDict) -> None:
    config.data.path = "runs/shipped/data"
    config.train.steps = 7000
    config.train.eval_every = 500
    config.train.checkpoint_every = 1000


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.model.dim = 48
    config.model.layers = 2
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.head_dim = 16
    config.model.ffn_dim = 128
    config.data.path = "runs/tiny/data"
    config.data.batch_size = 4
    config.train.steps = 20
    config.train.accumulate_steps = 1
    config.train.log_every = 5
    config.train.eval_every = 10
    config.train.checkpoint_every = 10
    config.optimizer.warmup_steps = 5


def _tune(config: ml_collections.ConfigDict) -> None:
    config.template = "aromni"
    config.data.path = "runs/tune/data"
    config.train.init_from = "numbers"
    config.model.lora = ml_collections.ConfigDict({"rank": 8, "alpha": 16.0})
    config.loss.prompt_weight = 0.0
    config.loss.segment_weight = 2.0  # what was heard, between ins and res: the reply rests on it
    config.loss.perceptual_tasks = ()
    config.optimizer.name = "adamw"
    config.optimizer.peak_lr = 2e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = "linear"
    config.train.steps = 200
    config.train.eval_every = 50
    config.train.checkpoint_every = 100
