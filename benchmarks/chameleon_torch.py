"""transformers' Chameleon with our parameters, for comparison only; on a CPU or a GPU, eager, SDPA attention."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from aromni_jax.config import ModelConfig
from aromni_jax.convert.layouts import Piece, external_shape, pieces
from aromni_jax.model import Params, flatten
from aromni_jax.vocabulary import JointVocabulary

# The picture encoder takes no part; this is the smallest that can be made.
_NO_PICTURES = {
    "embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "resolution": 16, "base_channels": 32,
    "channel_multiplier": [1, 1], "num_res_blocks": 1,
}  # fmt: skip


class Transformers:
    """`generate` of transformers: greedy, key/value cache, never stops early."""

    name = "transformers"

    def __init__(
        self, params: Params, config: ModelConfig, vocabulary: JointVocabulary, backend: str, threads: int
    ) -> None:
        """`params` with layers apart, as `model.split_layers` gives them; `backend`: "cpu" or "gpu"."""
        torch.set_num_threads(threads)
        device = {"gpu": "cuda"}.get(backend, backend)
        dtype = getattr(torch, config.param_dtype)
        values = ChameleonConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn_dim,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            swin_norm=config.norm_order == "swin",
            vocabulary_map={"<image>": vocabulary.boi},
            vq_config=_NO_PICTURES,
        )
        with torch.device(device):
            self._model = ChameleonForConditionalGeneration(values).to(dtype).eval()
        whole = flatten({name: group for name, group in params.items() if name != "layers"})
        layers = [flatten({"layers": layer}) for layer in params["layers"]]
        targets = dict(self._model.named_parameters())
        with torch.no_grad():
            for piece in pieces(config):
                holder = whole if piece.layer is None else layers[piece.layer]
                targets[piece.name("hf")].copy_(_external(holder[piece.path], piece))
        settings = self._model.generation_config
        settings.eos_token_id, settings.pad_token_id, settings.bos_token_id = None, vocabulary.pad, vocabulary.bos
        self._device = device

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """`tokens` new ones for each of the prompts, which are of one length."""
        ids_bs = torch.tensor(np.asarray(prompts), device=self._device)
        out_bs = self._model.generate(ids_bs, max_new_tokens=tokens, do_sample=False, use_cache=True)
        return out_bs[:, ids_bs.shape[1] :].tolist()


def _external(array: jax.Array, piece: Piece) -> torch.Tensor:
    """A parameter as transformers' tensor (the layout "hf": rotary halves as ours), without a way through the host."""
    tensor, spec = torch.from_dlpack(array), piece.spec
    assert spec.external is not None
    shape = external_shape(spec, "hf")
    if spec.external.inputs:
        return tensor.reshape(shape[::-1]).T
    if spec.external.heads:
        return tensor.repeat_interleave(shape[0] // tensor.shape[0], dim=0)
    return tensor
