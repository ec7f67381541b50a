"""Where a model and its caches are: on one device, or split over a mesh."""

from __future__ import annotations

import contextlib
import math

import jax
from jax.sharding import Mesh

from aromni_jax.config import ModelConfig
from aromni_jax.decoding.loop import empty
from aromni_jax.decoding.session import power_of_two
from aromni_jax.errors import UserError
from aromni_jax.model import CACHE_DTYPES, KVCache, Params, parameter_table, split_layers
from aromni_jax.parallel import DEFAULT_RULES, param_shardings


class Placement:
    """Puts parameters and caches where they belong.

    Parameters are split by the rules of `parallel.sharding`; of a cache, rows over replica and fsdp, key/value heads
    over tensor.

    Args:
      config: of the model.
      mesh: None = the default device.
      cache_dtype: one of `model.CACHE_DTYPES`; None = the compute dtype.

    Raises:
      UserError: an unknown dtype, or a mesh over which the cache cannot be split.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh | None, cache_dtype: str | None) -> None:
        if cache_dtype not in (None, *CACHE_DTYPES):
            raise UserError(f"cache dtype {cache_dtype!r}: use one of {', '.join(CACHE_DTYPES)}")
        if mesh is not None and config.kv_heads % mesh.shape["tensor"]:
            raise UserError(
                f"mesh: tensor={mesh.shape['tensor']} does not divide the model's {config.kv_heads} key/value heads: "
                "every device would hold the whole cache; use a size that divides them, and fsdp for the rest"
            )
        if mesh is not None and mesh.shape["context"] != 1:
            raise UserError(
                f"mesh: context={mesh.shape['context']}, but decoding splits no sequence; use 1, and fsdp or tensor"
            )
        self._config, self._mesh, self._cache_dtype = config, mesh, cache_dtype

    def params(self, params: Params) -> Params:
        """The same parameters, in their place, layer by layer."""
        if self._mesh is not None:
            params = jax.device_put(params, param_shardings(parameter_table(self._config), self._mesh))
        return split_layers(params)

    def active(self) -> contextlib.AbstractContextManager:
        """In it, compiled programs know the mesh; not to be held over a yield."""
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty one."""
        return empty(self._config, rows, length, self._cache_dtype)

    def bucket(self, rows: int) -> int:
        """Rows to decode `rows` with: a power of two, and as many on every device."""
        pieces = 1 if self._mesh is None else math.prod(self._mesh.shape[axis] for axis in DEFAULT_RULES.batch)
        return -(-power_of_two(rows) // pieces) * pieces
