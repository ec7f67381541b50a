"""The form of attention over a cache that TPUs get, which no CPU compiles by itself, against the reference."""

import jax.numpy as jnp
import numpy as np
import pytest

from aromni_jax.model.cached import padded_attend
from aromni_jax.model.plain import xla_attend


@pytest.mark.parametrize(("kv_heads", "queries"), [(4, 1), (2, 3)])
@pytest.mark.parametrize("scaled", [False, True])
def test_idle_queries_change_nothing(kv_heads, queries, scaled):
    rng = np.random.default_rng(0)
    q_bshe = jnp.asarray(rng.standard_normal((2, queries, 4, 8)), jnp.float32)
    k_bkte, v_bkte = jnp.asarray(rng.standard_normal((2, 2, kv_heads, 5, 8)), jnp.float32)
    mask_bst = jnp.asarray(rng.integers(0, 2, (2, queries, 5)) == 1).at[:, :, 0].set(True)
    scales = tuple(jnp.asarray(rng.random((2, 2, kv_heads, 5)), jnp.float32)) if scaled else None
    given = (q_bshe, k_bkte, v_bkte, mask_bst, scales)
    np.testing.assert_allclose(padded_attend(*given), xla_attend(*given), rtol=1e-5, atol=1e-6)
