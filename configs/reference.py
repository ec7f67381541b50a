"""AR-Omni at full size, and the models it stands on: exact shapes, and both recipes of SPEC 5.

configs/reference.py:ar-omni                 the paper's stage 1, pretraining (also when no variant is named)
configs/reference.py:ar-omni-chat            the paper's stage 2, tuning on interleaved dialogs: loss on answers only
configs/reference.py:ar-omni-released, :ar-omni-chat-released    both stages as the released code has them
configs/reference.py:anole-head              what Anole trained of Chameleon-7B: the output head's rows of image codes
configs/reference.py:anole-7b, :chameleon-7b, :chameleon-34b     the paper's stage 1 with their shapes

Stage 1 begins with Anole's weights, stage 2 with those of stage 1, anole-head with Chameleon's: `--set
train.init_from=...`. The reference pads every example to the longest of a step; here rows are packed.
"""

import dataclasses

import ml_collections

from aromni_jax.errors import UserError
from aromni_jax.model import PRESETS

_STAGES = ("ar-omni-chat", "ar-omni-released", "ar-omni-chat-released", "anole-head")


def get_config(arg: str = "ar-omni") -> ml_collections.ConfigDict:
    """`arg`: a name of `aromni_jax.model.PRESETS`, or one of the other variants above."""
    variant = arg or "ar-omni"
    if variant not in (*PRESETS, *_STAGES):
        raise UserError(f"configs/reference.py: unknown variant {arg!r}: use {', '.join((*PRESETS, *_STAGES))}")
    chat = variant.startswith("ar-omni-chat")
    shape = {**dict.fromkeys(_STAGES, "ar-omni"), "anole-head": "chameleon-7b"}.get(variant, variant)
    config = ml_collections.ConfigDict()
    config.template = "aromni"

    config.model = ml_collections.ConfigDict(dataclasses.asdict(PRESETS[shape]))
    config.model.param_dtype = "float32"  # the optimiser's own copy; computation is in bfloat16
    config.model.perceptual_dim = 256

    config.data = ml_collections.ConfigDict()
    config.data.path = "data/sft" if chat else "data/pretrain"

    config.loss = ml_collections.ConfigDict()
    config.loss.prompt_weight = 0.0 if chat else 1.0
    config.loss.response_weights = {} if chat else {"image_caption": 2.0, "speech_to_text": 2.0}
    # Stage 2 counts every picture that is answered with.
    config.loss.perceptual_tasks = () if chat else ("text_to_image",)
    config.loss.perceptual_weight = 1.0
    config.loss.reduce = "mean"  # the paper sums, and multiplies by a small factor that it does not give

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.decay = "linear"
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    config.train = ml_collections.ConfigDict()
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000
    (_released if variant.endswith("-released") else _paper)(config, chat)
    if variant == "anole-head":
        config.train.trainable = ("head/kernel@image",)
        config.loss.perceptual_weight = 0.0
    return config


def _paper(config: ml_collections.ConfigDict, chat: bool) -> None:
    """SPEC 5.2."""
    # About as many tokens as the paper's batches: 480 sequences of up to 1300 tokens, 64 of up to 3456.
    config.data.sequence_length = 4096
    config.data.batch_size = 64 if chat else 160
    if not chat:  # text : image-text : speech-text = 0.5 : 1 : 2 (SPEC 5.4)
        config.data.mixture = {
            "text_to_text": 0.5,
            "image_caption": 0.5,
            "text_to_image": 0.5,
            "speech_to_text": 1.0,
            "text_to_speech": 1.0,
        }
    config.loss.normalise = "tokens"
    config.loss.align = "predict"
    config.loss.projection = "trained"
    config.optimizer.peak_lr = 2e-5 if chat else 6e-5
    config.optimizer.warmup_steps = 900 if chat else 7000
    config.train.steps = 18_000 if chat else 140_000


def _released(config: ml_collections.ConfigDict, chat: bool) -> None:
    """SPEC 5.1, for eight devices; for more, lower `train.accumulate_steps` (and micro-batches are larger)."""
    # Examples are shorter than 1300 tokens there, 2048 in stage 2; rows of 1280 suit a TPU's kernels.
    config.data.sequence_length = 2048 if chat else 1280
    config.data.batch_size = 64 if chat else 256
    config.train.accumulate_steps = 8 if chat else 16
    config.loss.normalise = "micro_batch"
    config.loss.segment_weight = 1.0
    config.loss.align = "same_position"
    config.loss.projection = "frozen"
    config.optimizer.peak_lr = 1e-5
    # Stage 2 is five epochs there, of data whose size is not said; here as many steps as the paper's.
    config.train.steps = 18_000 if chat else 150_000
    config.optimizer.warmup_steps = round(0.03 * config.train.steps)
    config.train.checkpoint_every = 2000 if chat else 1000
