"""The peer: the decoder, both losses and the optimiser step of aromni_jax, written in plain PyTorch (eager, float32).

It shares nothing with the code it is compared to but the batch and the starting weights. Where PyTorch has a fused CPU
operator, it is used: scaled-dot-product attention with grouped heads (causal without a mask where every row is one
example), RMSNorm, LayerNorm, AdamW; the mask is made once per step. It covers the objective of configs/numbers.py:
global normalisation, no z-loss, predictive perceptual loss by mean, or none.
"""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from aromni_jax.config import ModelConfig, RunConfig
from aromni_jax.data import Batch
from aromni_jax.model import Params, flatten
from aromni_jax.vocabulary import TASKS, JointVocabulary, task_id

_NO_DECAY = re.compile(r"norm|bias|perceptual")


class Decoder(nn.Module):
    """Token ids to final hidden states. Modules are named as in the parameter table of aromni_jax."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, v = config.dim, config.vocab_size
        self.config = config
        self.embedder = nn.ModuleDict({"embedding": nn.Embedding(v, d)})
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(d, config.norm_eps)
        self.head = nn.Linear(d, v, bias=False)
        self.perceptual = nn.Linear(d, config.perceptual_dim) if config.perceptual_dim else None

    def forward(
        self, tokens_bs: torch.Tensor, positions_bs: torch.Tensor, mask_b1st: torch.Tensor | None
    ) -> torch.Tensor:
        """Hidden states [b, s, d] after the final norm; `mask_b1st` is added to the attention scores, None = causal."""
        e = self.config.head_dim
        frequency_e = self.config.rope_theta ** (-torch.arange(0, e, 2, dtype=torch.float32) / e)
        angle_bs1e = (positions_bs[..., None].float() * frequency_e)[:, :, None]
        angles = angle_bs1e.cos(), angle_bs1e.sin()
        x_bsd = self.embedder["embedding"](tokens_bs)
        for layer in self.layers:
            x_bsd = layer(x_bsd, angles, mask_b1st)
        return self.final_norm(x_bsd)


class Layer(nn.Module):
    """Attention, then SwiGLU; each normed before ("pre") or after ("swin") and added to its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre = config.norm_order == "pre"
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn = SwiGLU(config.dim, config.ffn_dim)

    def forward(
        self, x_bsd: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], mask_b1st: torch.Tensor | None
    ) -> torch.Tensor:
        if self.pre:
            x_bsd = x_bsd + self.attention(self.attention_norm(x_bsd), angles, mask_b1st)
            return x_bsd + self.ffn(self.ffn_norm(x_bsd))
        x_bsd = x_bsd + self.attention_norm(self.attention(x_bsd, angles, mask_b1st))
        return x_bsd + self.ffn_norm(self.ffn(x_bsd))


class Attention(nn.Module):
    """Grouped-query attention with QK-norm and rotate-half positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, h, k, e = config.dim, config.heads, config.kv_heads, config.head_dim
        self.head_dim = e
        self.query = nn.Linear(d, h * e, bias=False)
        self.key = nn.Linear(d, k * e, bias=False)
        self.value = nn.Linear(d, k * e, bias=False)
        groups = config.qk_norm_groups
        self.query_norm = HeadNorm(groups or h, e, config.qk_norm_eps)
        self.key_norm = HeadNorm(groups or k, e, config.qk_norm_eps)
        self.out = nn.Linear(h * e, d, bias=False)

    def forward(
        self, x_bsd: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], mask_b1st: torch.Tensor | None
    ) -> torch.Tensor:
        q_bshe, k_bske, v_bske = (
            project(x_bsd).unflatten(-1, (-1, self.head_dim)) for project in (self.query, self.key, self.value)
        )
        q_bshe = rotate(self.query_norm(q_bshe), angles)
        k_bske = rotate(self.key_norm(k_bske), angles)
        mixed_bhse = F.scaled_dot_product_attention(
            q_bshe.transpose(1, 2),
            k_bske.transpose(1, 2),
            v_bske.transpose(1, 2),
            attn_mask=mask_b1st,
            is_causal=mask_b1st is None,
            enable_gqa=q_bshe.shape[2] != k_bske.shape[2],
        )
        return self.out(mixed_bhse.transpose(1, 2).flatten(2))


class HeadNorm(nn.Module):
    """LayerNorm over each head, with a weight and a bias per head, or one for all (groups = 1)."""

    def __init__(self, groups: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(groups, head_dim))
        self.bias = nn.Parameter(torch.zeros(groups, head_dim))

    def forward(self, x_bshe: torch.Tensor) -> torch.Tensor:
        if len(self.scale) == 1:
            return F.layer_norm(x_bshe, x_bshe.shape[-1:], self.scale[0], self.bias[0], self.eps)
        return F.layer_norm(x_bshe, x_bshe.shape[-1:], eps=self.eps) * self.scale + self.bias


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, ffn_dim, bias=False)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_bsd: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x_bsd)) * self.up(x_bsd))


def rotate(x_bshe: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn every pair (i, i + head_dim / 2) by its angle."""
    cos, sin = angles
    first, second = x_bshe.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def additive_mask(segment_ids_bs: torch.Tensor) -> torch.Tensor | None:
    """float32 [b, 1, s, s]: 0 where the query may see the key, the lowest float elsewhere.

    Causal inside a segment: block-diagonal for packed rows; for one example per row, causal with the padding masked.
    None where that is plain causality, every row one whole example.
    """
    if (segment_ids_bs == segment_ids_bs[:, :1]).all():
        return None
    length = segment_ids_bs.shape[1]
    seen_bst = (segment_ids_bs[:, :, None] == segment_ids_bs[:, None, :]).tril()
    mask_bst = torch.full((len(segment_ids_bs), length, length), torch.finfo(torch.float32).min)
    return mask_bst.masked_fill_(seen_bst, 0.0)[:, None]


class TorchPeer:
    """Loss and optimiser step on the same weights and batches as `training.make_train_step`, at the peak rate.

    Attributes:
      name: in tables.
    """

    name = "PyTorch"

    def __init__(
        self, config: RunConfig, vocabulary: JointVocabulary, params: Params, codebook_kc: np.ndarray | None
    ) -> None:
        self._config, self._vocabulary = config, vocabulary
        self._weights = {name: torch.from_numpy(value) for name, value in torch_weights(params).items()}
        self._codebook_kc = None if codebook_kc is None else torch.from_numpy(np.array(codebook_kc, np.float32))
        takes_part = config.loss.perceptual_tasks or TASKS
        self._task_ids = torch.tensor([task_id(task) for task in takes_part])
        self.restart()

    def restart(self) -> None:
        """Back to the starting weights, with a fresh optimiser."""
        self.model = Decoder(self._config.model)
        self.model.load_state_dict(self._weights)
        settings = self._config.optimizer
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            groups[not _NO_DECAY.search(name)].append(parameter)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": settings.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=settings.peak_lr,
            betas=(settings.b1, settings.b2),
            eps=settings.eps,
            fused=True,
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Weighted next-token loss plus, with a codebook, the weighted perceptual loss; float32 scalar (SPEC 4)."""
        tokens_bs = torch.from_numpy(batch.tokens).long()
        segment_ids_bs = torch.from_numpy(batch.segment_ids)
        hidden_bsd = self.model(tokens_bs, torch.from_numpy(batch.positions), additive_mask(segment_ids_bs))
        # Weights are 0 on the first token of every example and on padding: nothing is predicted across a border.
        weights_bs = torch.from_numpy(batch.loss_weights)
        logits_bsv = self.model.head(hidden_bsd[:, :-1])
        ce_n = F.cross_entropy(logits_bsv.flatten(0, 1), tokens_bs[:, 1:].flatten(), reduction="none")
        target_weights_n = weights_bs[:, 1:].flatten()
        token_loss = (ce_n * target_weights_n).sum() / target_weights_n.sum().clamp(min=1.0)
        if self._codebook_kc is None:
            return token_loss
        return token_loss + self._config.loss.perceptual_weight * self._perceptual(batch, hidden_bsd, tokens_bs)

    def step(self, batch: Batch) -> None:
        """Forward, backward, clip by the global norm, AdamW."""
        self._optimizer.zero_grad(set_to_none=True)
        self._loss = self.loss(batch)
        self._loss.backward()
        self._norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._config.optimizer.clip_norm)
        self._optimizer.step()

    def outcome(self) -> tuple[float, float]:
        """Loss and gradient norm (before clipping) of the last step."""
        return self._loss.item(), self._norm.item()

    def _perceptual(self, batch: Batch, hidden_bsd: torch.Tensor, tokens_bs: torch.Tensor) -> torch.Tensor:
        """Mean squared distance to the codebook, gathered at the states that predict the image tokens."""
        v = self._vocabulary
        counted_bs = (torch.from_numpy(batch.loss_weights) > 0) & torch.isin(
            torch.from_numpy(batch.task_ids), self._task_ids
        )
        anchors_bs = (tokens_bs == v.boi) & counted_bs
        rows_n, places_n = anchors_bs[:, : -v.image_tokens].nonzero(as_tuple=True)
        if not len(rows_n):
            return hidden_bsd.new_zeros(())
        offsets_i = torch.arange(v.image_tokens)
        states_nid = hidden_bsd[rows_n[:, None], places_n[:, None] + offsets_i]
        codes_ni = tokens_bs[rows_n[:, None], places_n[:, None] + offsets_i + 1] - v.image.start
        return F.mse_loss(self.model.perceptual(states_nid), self._codebook_kc[codes_ni])


def torch_weights(params: Params) -> dict[str, np.ndarray]:
    """`Decoder.state_dict()` names and layouts (linear weights [out, in]) of a parameter tree of aromni_jax."""
    weights: dict[str, np.ndarray] = {}
    for path, value in flatten(params).items():
        array = np.array(value, np.float32)
        if not path.startswith("layers/"):
            arrays = {path: array}
        else:  # stacked on axis 0
            arrays = {path.replace("/", f"/{number}/", 1): layer for number, layer in enumerate(array)}
        weights |= dict(_to_torch(name, one) for name, one in arrays.items())
    return weights


def _to_torch(path: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    name = path.replace("/", ".")
    if "query_norm" in path or "key_norm" in path:  # parameters of `HeadNorm`, named alike
        return name, array
    name = re.sub(r"\.(scale|kernel)$", "", name)
    if path.endswith("/bias"):
        return name, array
    if path.endswith(("/scale", "/embedding")):
        return f"{name}.weight", array
    # [in, out], either of which may be split into heads and head_dim.
    matrix = array.reshape(-1, array.shape[-1]) if path.endswith("/out") else array.reshape(len(array), -1)
    return f"{name}.weight", np.ascontiguousarray(matrix.T)
