"""Published models by name: their exact shapes (SPEC 3.1)."""

from __future__ import annotations

import dataclasses

from aromni_jax.config import ModelConfig
from aromni_jax.vocabulary import OFFICIAL_SIZE

_CHAMELEON_7B = ModelConfig(
    vocab_size=OFFICIAL_SIZE,
    dim=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn_dim=11008,
    norm_order="pre",
    qk_norm_groups=1,
    max_positions=4096,
    compute_dtype="bfloat16",
    param_dtype="bfloat16",
    attention="fused",
    remat="full",
    logits_tile=8192,
)

PRESETS = {
    "chameleon-7b": _CHAMELEON_7B,
    # Called 30B in the release's folder names. Four model-parallel ranks, each with QK-norm vectors of its own.
    "chameleon-34b": dataclasses.replace(
        _CHAMELEON_7B, dim=8192, layers=48, heads=64, kv_heads=8, ffn_dim=22016, norm_order="swin", qk_norm_groups=4
    ),
    # Chameleon-7B with a new output head for image codes.
    "anole-7b": _CHAMELEON_7B,
    # Anole with the norms behind their branches (SPEC 3.7), and the projection of the perceptual loss.
    "ar-omni": dataclasses.replace(_CHAMELEON_7B, norm_order="swin", perceptual_dim=256),
}
