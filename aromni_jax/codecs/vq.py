"""The vector-quantised autoencoder that the small image and speech codecs share.

Shapes: b batch, c channels, e embedding width, k codes, n vectors; the grid between b and the last axis is one axis
(time) for speech and two (rows, columns) for pictures.

The encoder looks at little more than the patch that a token stands for, so that a token means the same anywhere;
the decoder sees the neighbours, so that the quality of the result does not rest on the number of codes alone.
Sources: straight-through estimator and moving-average codebook, van den Oord et al. 2017 (appendix A.1);
revival of unused codes, Dhariwal et al. 2020 (Jukebox, section 3.1).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aromni_jax.errors import UserError

Params = dict[str, Any]
Net = TypeVar("Net", bound=nnx.Module)


class Residual(nnx.Module):
    """x + W2 gelu(conv(norm(x))): norm over channels only, so that no vector depends on the length of its row.

    Args:
      kernel: one number per grid axis.
      dilation: step between the taps of the kernel.
    """

    def __init__(self, channels: int, kernel: tuple[int, ...], dilation: int = 1, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(channels, epsilon=1e-5, rngs=rngs)
        self.conv = nnx.Conv(channels, channels, kernel, kernel_dilation=dilation, rngs=rngs)
        # Starts near the identity: deep stacks train from the first step.
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | float = 1.0) -> jax.Array:
        """x float32 [b, *grid, c]; mask 0 or 1, [b, *grid, 1]: what lies outside of it is kept at zero."""
        hidden = jax.nn.gelu(self.conv(self.norm(x) * mask))
        return (x + self.out(hidden)) * mask


def nearest(codebook_ke: jax.Array, x: jax.Array) -> jax.Array:
    """float32 [..., e] -> int32 [...], the code with the smallest squared distance, the first one on ties."""
    x_ne = x.reshape(-1, x.shape[-1])
    distance_nk = jnp.sum(codebook_ke**2, axis=-1)[None] - 2 * jnp.matmul(x_ne, codebook_ke.T, precision="highest")
    return jnp.argmin(distance_nk, axis=-1).astype(jnp.int32).reshape(x.shape[:-1])


def straight_through(x: jax.Array, quantised: jax.Array) -> jax.Array:
    """`quantised` in value; its gradient goes to `x` unchanged."""
    return x + jax.lax.stop_gradient(quantised - x)


@functools.partial(jax.jit, static_argnames=("codes", "rounds"))
def kmeans(key: jax.Array, x_ne: jax.Array, codes: int, rounds: int = 15) -> jax.Array:
    """Lloyd's algorithm from random distinct vectors -> codebook float32 [k, e]; empty clusters stay where they are."""
    start_ke = jax.random.choice(key, x_ne, (codes,), replace=False)

    def refine(codebook_ke: jax.Array, _: None) -> tuple[jax.Array, None]:
        count_k, total_ke = _tally(x_ne, nearest(codebook_ke, x_ne), codes)
        return jnp.where(count_k[:, None] > 0, total_ke / jnp.maximum(count_k, 1)[:, None], codebook_ke), None

    return jax.lax.scan(refine, start_ke, None, length=rounds)[0]


def _tally(x_ne: jax.Array, codes_n: jax.Array, codes: int) -> tuple[jax.Array, jax.Array]:
    """How many vectors each code took, and their sum; a negative code counts nowhere."""
    onehot_nk = jax.nn.one_hot(codes_n, codes)
    return onehot_nk.sum(axis=0), onehot_nk.T @ x_ne


def codebook_state(codebook_ke: jax.Array, vectors_per_step: float) -> Params:
    """Moving averages that hold `codebook_ke` and equal use of all codes."""
    count_k = jnp.full(codebook_ke.shape[0], vectors_per_step / codebook_ke.shape[0])
    return {"count": count_k, "total": codebook_ke * count_k[:, None]}


def codebook_of(state: Params) -> jax.Array:
    """The codebook float32 [k, e] that moving averages stand for."""
    return state["total"] / jnp.maximum(state["count"], 1e-5)[:, None]


def update_codebook(
    state: Params, x_ne: jax.Array, codes_n: jax.Array, key: jax.Array, decay: float = 0.98, alive: float = 0.05
) -> Params:
    """One step of the moving averages; a code used less than `alive` of the mean use restarts at a random vector.

    Args:
      x_ne, codes_n: the encoder's vectors and their codes; a negative code leaves a vector out (padding).
    """
    codes = state["count"].shape[0]
    count_k, total_ke = _tally(x_ne, codes_n, codes)
    count_k = decay * state["count"] + (1 - decay) * count_k
    total_ke = decay * state["total"] + (1 - decay) * total_ke
    mean_use = jnp.sum(count_k) / codes
    dead_k = count_k < alive * mean_use
    weights_n = (codes_n >= 0).astype(jnp.float32)
    fresh_ke = jax.random.choice(key, x_ne, (codes,), p=weights_n / weights_n.sum())
    restart = 0.3 * mean_use  # enough to live through some steps without a match
    return {
        "count": jnp.where(dead_k, restart, count_k),
        "total": jnp.where(dead_k[:, None], fresh_ke * restart, total_ke),
    }


def perplexity(codes: np.ndarray, num_codes: int) -> float:
    """exp(entropy) of the use of codes: how many of them do the work."""
    return perplexity_of_use(np.bincount(np.asarray(codes).ravel(), minlength=num_codes))


def perplexity_of_use(use_k: np.ndarray) -> float:
    """As `perplexity`, from how often each code was used."""
    share = use_k[use_k > 0] / use_k.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def check_codes(codes: np.ndarray | Sequence, num_codes: int, what: str) -> np.ndarray:
    """int32 copy of codes; UserError unless they are whole numbers in [0, num_codes)."""
    try:
        codes = np.asarray(codes)
    except ValueError as error:
        raise UserError(f"{what} codes are rows of different lengths; give an array") from error
    if codes.dtype.kind not in "iu" and codes.size:
        raise UserError(f"{what} codes must be whole numbers, not {codes.dtype}")
    if codes.size and not (codes.min() >= 0 and codes.max() < num_codes):
        bad = codes[(codes < 0) | (codes >= num_codes)].ravel()[0]
        raise UserError(f"{what} code {bad} is outside 0..{num_codes - 1}: another codec made it")
    return codes.astype(np.int32)


def check_sizes(config: Any, none_of: Sequence[str]) -> None:
    """ValueError unless the whole numbers of a config are above 0, or 0 where there may be none of a thing."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in (int, "int") and (type(value) is not int or value < (field.name not in none_of)):
            raise ValueError(f"{field.name}={value!r} is no possible size")


def init(build: Callable[[nnx.Rngs], nnx.Module], seed: int) -> Params:
    """Fresh parameters of the module that `build` makes, as nested dicts with string keys."""
    return _string_keys(jax.jit(lambda: nnx.to_pure_dict(nnx.state(build(nnx.Rngs(seed)), nnx.Param)))())


def _string_keys(tree: Any) -> Any:
    return {str(key): _string_keys(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def with_params(build: Callable[[nnx.Rngs], Net], params: Params) -> Net:
    """The module that `build` makes, holding `params` (arrays or tracers; nothing is initialised).

    Raises UserError when names or shapes are not those of the module.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    wanted = shapes(nnx.to_pure_dict(state))
    found = shapes(params)
    if wanted != found:
        name = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise UserError(
            f"codec weights do not fit their config: {name} is {found.get(name, 'missing')}, "
            f"the config wants {wanted.get(name, 'nothing')}; fetch the codec again"
        )
    nnx.replace_by_pure_dict(state, _int_keys(params))
    return nnx.merge(graph, state)


def _int_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(key) if key.isdecimal() else key: _int_keys(value) for key, value in tree.items()}


def shapes(tree: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shape of every array of nested dicts, by slash-joined path."""
    if not isinstance(tree, dict):
        return {prefix: tuple(tree.shape)}
    found: dict[str, tuple[int, ...]] = {}
    for key, value in tree.items():
        found |= shapes(value, f"{prefix}/{key}" if prefix else str(key))
    return found


def check_params(
    build: Callable[[nnx.Rngs], nnx.Module], params: Params, codebook_shape: tuple[int, int], where: object
) -> None:
    """UserError unless `params` is {"net": what `build` makes, "codebook": that shape}."""
    try:
        with_params(build, params["net"])
        found = tuple(params["codebook"].shape)
    except KeyError as error:
        raise UserError(f"{where}: the weights hold no {error}; fetch the codec again") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if found != codebook_shape:
        raise UserError(f"{where}: the codebook is {found}, its config says {codebook_shape}; fetch the codec again")


def spread(params: Params, mesh: Mesh, axes: str | Sequence[str] | None) -> tuple[Params, NamedSharding]:
    """Parameters on every device of a mesh, and the sharding of a batch over `axes` of it (None = all of them).

    Raises UserError: an axis that the mesh has not, or a mesh of several processes.
    """
    axes = tuple(mesh.axis_names) if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    unknown = [axis for axis in axes if axis not in mesh.axis_names]
    if unknown or mesh.is_multi_process:
        reason = f"has no axis {unknown[0]}" if unknown else "spans several processes"
        raise UserError(f"the mesh {dict(mesh.shape)} {reason}: give a mesh of this process's devices, and its axes")
    return jax.device_put(params, NamedSharding(mesh, PartitionSpec())), NamedSharding(mesh, PartitionSpec(axes))
