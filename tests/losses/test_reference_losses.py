"""Both losses against the reference trainers' stored values and gradients (golden set G2)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.config import MeshConfig
from aromni_jax.losses import image_span_mask, perceptual, weighted_next_token
from aromni_jax.parallel import batch_sharding, make_mesh, shard

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "golden" / "g2_losses"
CASES = json.loads((FOLDER / "losses.json").read_text())
IMAGE_START = 4
IGNORED = -100
with np.load(FOLDER / "losses.npz", allow_pickle=False) as file:
    ARRAYS = dict(file)


def _arrays(name):
    return {key.removeprefix(f"{name}/"): value for key, value in ARRAYS.items() if key.startswith(f"{name}/")}


def _counted(case, arrays):
    """Where a picture counts for the reference: a valid label on the BOI and, in pretraining, a text_to_image row."""
    counted = arrays["labels"] != IGNORED
    if case["kind"] == "pretrain":
        counted &= np.array([task == "text_to_image" for task in case["tasks"]])[:, None]
    return counted


def _span(case):
    return {"boi": case["image_start_id"], "image_tokens": case["ctor"].get("image_seq_length", 1024)}


def _perceptual(hidden, projection, codebook, ids, mask):
    return perceptual(
        hidden, projection, codebook, ids, mask, image_start=IMAGE_START, align="same_position", reduce="mean"
    )


def _projection(arrays):
    return {"kernel": jnp.asarray(arrays["proj_weight"].T), "bias": jnp.asarray(arrays["proj_bias"])}


def _inputs(case, arrays):
    """What the gradient is taken of, and the rest."""
    vocab = arrays["logits"].shape[-1]
    # Ignored labels carry no weight; the reference's weights are per label, ours per token with a leading 0.
    given = {
        "tokens": np.where(arrays["labels"] == IGNORED, 0, arrays["labels"]).clip(0, vocab - 1),
        "weights": np.pad(arrays["weights"], ((0, 0), (1, 0))),
    }
    learned = {"logits": arrays["logits"]}
    if case["loss_net"]:
        given |= {"ids": arrays["input_ids"], "counted": _counted(case, arrays), "codebook": arrays["perception_embed"]}
        given["factor"] = case["ctor"].get("perception_weight", case["ctor"].get("global_weight", 1.0))
        learned |= {"hidden": arrays["hidden"], "projection": _projection(arrays)}
    return learned, given


@functools.partial(jax.jit, static_argnames=("boi", "image_tokens", "tile"))
def _value_and_gradients(learned, given, *, boi, image_tokens, tile):
    """(total, (next-token result, perceptual loss)) and gradients; compiled once per shape, not per case."""

    def total(learned):
        logits = learned["logits"]
        head = jnp.eye(logits.shape[-1])
        result = weighted_next_token(
            logits, head, given["tokens"], given["weights"], normalise="micro_batch", tile=tile
        )
        if "hidden" not in learned:
            return result.loss, (result, 0.0)
        mask = image_span_mask(given["ids"], given["counted"], boi=boi, image_tokens=image_tokens)
        extra = _perceptual(learned["hidden"], learned["projection"], given["codebook"], given["ids"], mask).loss
        return result.loss + given["factor"] * extra, (result, extra)

    return jax.value_and_grad(total, has_aux=True)(learned)


@pytest.mark.parametrize(
    ("name", "tile"),
    [(name, 0) for name in CASES if not name.endswith("bf16")]
    + [("pretrain_perception_short", 16), ("sft_segments", 7)],
)
def test_losses_and_gradients(name, tile):
    case, arrays = CASES[name], _arrays(name)
    learned, given = _inputs(case, arrays)
    (value, (result, extra)), gradients = _value_and_gradients(learned, given, tile=tile, **_span(case))
    np.testing.assert_allclose(value, arrays["total"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.loss, arrays["weighted_ce"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(extra, arrays["perception_loss"], rtol=1e-6, atol=1e-7)
    valid = arrays["labels"][:, 1:] != IGNORED
    np.testing.assert_allclose(result.ce_bs[:, 1:][valid], arrays["per_token_ce"][valid], atol=2e-6)
    _close(gradients["logits"], arrays["grad_logits"])
    if case["loss_net"]:
        _close(gradients["hidden"], arrays["grad_hidden"])
    if "grad_proj_weight" in arrays:
        _close(gradients["projection"]["kernel"].T, arrays["grad_proj_weight"])
        _close(gradients["projection"]["bias"], arrays["grad_proj_bias"])


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("bf16")])
def test_bfloat16_states(name):
    """The reference's own bfloat16 module; ours accumulates in float32, so they agree to bfloat16 rounding."""
    case, arrays = CASES[name], _arrays(name)
    ids = jnp.asarray(arrays["input_ids"])
    mask = image_span_mask(ids, jnp.asarray(_counted(case, arrays)), **_span(case))
    hidden = jnp.asarray(arrays["hidden"], jnp.bfloat16)
    result = _perceptual(hidden, _projection(arrays), arrays["perception_embed"], ids, mask)
    np.testing.assert_allclose(result.loss, arrays["perception_loss"], rtol=3e-3)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["loss_net"]])
def test_number_of_counted_pictures(name):
    case, arrays = CASES[name], _arrays(name)
    mask = image_span_mask(jnp.asarray(arrays["input_ids"]), jnp.asarray(_counted(case, arrays)), **_span(case))
    assert mask.sum() == case["n_spans"] * case["ctor"]["image_seq_length"]


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-6 * max(np.abs(expected).max(), 1e-3), rtol=1e-6)


@functools.partial(jax.jit, static_argnames=("boi", "image_tokens"))
def _placed(learned, given, *, boi, image_tokens):
    """As above, with states and scores split over the mesh as training splits them."""
    learned = {**learned, "logits": shard(learned["logits"], "batch", "seq", "vocab")}
    learned["hidden"] = shard(learned["hidden"], "batch", "seq", None)
    return _value_and_gradients.__wrapped__(learned, given, boi=boi, image_tokens=image_tokens, tile=0)


@pytest.mark.parametrize(
    "sizes",
    [{"fsdp": 8}, {"tensor": 4, "fsdp": 2}, {"context": 4, "tensor": 2}, {"replica": 2, "fsdp": 2, "context": 2}],
    ids=str,
)
def test_losses_and_gradients_at_every_sharding(sizes):
    name = "pretrain_perception_short"  # eight rows of forty: all axes divide them
    mesh, arrays = make_mesh(MeshConfig(**{"fsdp": 1, **sizes})), _arrays(name)
    learned, given = _inputs(CASES[name], arrays)
    with jax.set_mesh(mesh):
        rows = batch_sharding(mesh)
        given = {key: jax.device_put(x, rows) if np.ndim(x) == 2 and len(x) == 8 else x for key, x in given.items()}
        (value, (_, extra)), gradients = _placed(learned, given, **_span(CASES[name]))
    np.testing.assert_allclose([value, extra], [arrays["total"], arrays["perception_loss"]], rtol=1e-6)
    _close(gradients["logits"], arrays["grad_logits"])
    _close(gradients["hidden"], arrays["grad_hidden"])
    _close(gradients["projection"]["kernel"].T, arrays["grad_proj_weight"])
    with pytest.raises(AssertionError):  # one row in another's place is noticed
        _close(gradients["hidden"][::-1], arrays["grad_hidden"])
