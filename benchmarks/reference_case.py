"""The case of the reference implementation's own figures: its shape of model, full rows of one example each.

Hidden 256, 6 layers of 8 heads, vocabulary 4096, "pre" norms, 6.9 M parameters; 4 rows of 512 random ids, the tail of
each weighted twofold, no perceptual loss, AdamW.
"""

from __future__ import annotations

import numpy as np

from aromni_jax.config import DataConfig, LossConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from aromni_jax.data import Batch
from aromni_jax.data.weights import token_roles, weight_table
from aromni_jax.vocabulary import JointVocabulary, task_id

VOCABULARY = JointVocabulary.compact(text_pieces=2036, image_codes=1024, image_tokens=256, speech_codes=1024)
_TASK = task_id("image_caption")
_TAIL = 4  # the answer is the last quarter of a row


def reference_config() -> RunConfig:
    """The shape of the reference's figures; what does not change the sums is set as it is fastest on a CPU."""
    model = ModelConfig(
        vocab_size=VOCABULARY.size, dim=256, layers=6, heads=8, kv_heads=8, head_dim=32, ffn_dim=704, norm_order="pre",
        qk_norm_groups=1, attention="blocked", scan_layers=False,
    )  # fmt: skip
    return RunConfig(
        model=model,
        data=DataConfig(sequence_length=512, batch_size=4),
        loss=LossConfig(response_weights={"image_caption": 2.0}, perceptual_weight=0.0),
        optimizer=OptimizerConfig(name="adamw", peak_lr=1e-4, warmup_steps=0, decay="constant", b2=0.999),
        mesh=MeshConfig(),
    )


def full_rows(config: RunConfig, vocabulary: JointVocabulary, count: int, seed: int = 0) -> list[Batch]:
    """`count` batches whose every row is one example of random ids: no padding, no border.

    Args:
      config: its data.batch_size and data.sequence_length are the shape, its loss weights the tokens.
    """
    rows, length = config.data.batch_size, config.data.sequence_length
    rng = np.random.default_rng(seed)
    kinds = (vocabulary.image, vocabulary.speech, vocabulary.text)
    ids = np.concatenate([np.arange(kind.start, kind.stop, dtype=np.int32) for kind in kinds])
    table = weight_table(config.loss)[_TASK]

    def batch() -> Batch:
        tokens_bs = rng.choice(ids, (rows, length))
        tokens_bs[:, 0], tokens_bs[:, -1] = vocabulary.bos, vocabulary.eos
        weights_bs = np.stack([table[token_roles(tokens_s, length // _TAIL, vocabulary)] for tokens_s in tokens_bs])
        return Batch(
            tokens=tokens_bs,
            loss_weights=weights_bs,
            segment_ids=np.ones((rows, length), np.int32),
            positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            task_ids=np.full((rows, length), _TASK, np.int32),
        )

    return [batch() for _ in range(count)]
