"""AR-Omni at full size, and the models it stands on: exact shapes, and the paper's recipe (SPEC 5.2).

configs/reference.py:ar-omni        stage 1, pretraining from Anole's weights (also when no variant is named)
configs/reference.py:ar-omni-chat   stage 2, tuning on interleaved dialogs: loss on answers only
configs/reference.py:anole-7b, :chameleon-7b, :chameleon-34b   stage 1 with their shapes
"""

import dataclasses

import ml_collections

from aromni_jax.errors import UserError
from aromni_jax.model import PRESETS

_CHAT = "ar-omni-chat"


def get_config(arg: str = "ar-omni") -> ml_collections.ConfigDict:
    """`arg`: a name of `aromni_jax.model.PRESETS`, or ar-omni-chat."""
    variant = arg or "ar-omni"
    if variant not in (*PRESETS, _CHAT):
        raise UserError(f"configs/reference.py: unknown variant {arg!r}: use {', '.join((*PRESETS, _CHAT))}")
    chat = variant == _CHAT
    config = ml_collections.ConfigDict()
    config.template = "aromni"

    config.model = ml_collections.ConfigDict(dataclasses.asdict(PRESETS["ar-omni" if chat else variant]))
    config.model.param_dtype = "float32"  # the optimiser's own copy; computation is in bfloat16
    config.model.perceptual_dim = 256

    config.data = ml_collections.ConfigDict()
    config.data.path = "data/sft" if chat else "data/pretrain"
    # About as many tokens as the paper's batches: 480 sequences of up to 1300 tokens, 64 of up to 3456.
    config.data.sequence_length = 4096
    config.data.batch_size = 64 if chat else 160

    config.loss = ml_collections.ConfigDict()
    config.loss.prompt_weight = 0.0 if chat else 1.0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.peak_lr = 2e-5 if chat else 6e-5
    config.optimizer.warmup_steps = 900 if chat else 7000
    config.optimizer.decay = "linear"
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 1.0

    config.train = ml_collections.ConfigDict()
    config.train.steps = 18_000 if chat else 140_000
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    return config
