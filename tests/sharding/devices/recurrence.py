"""The memory's scan and attention with sequences cut over devices, on gates of every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.sharding import attend_by_heads, on_mesh, sharded_decay_scan, sharding
from ratjax.sparsity.dense import prefill
from ratjax_kernels import decay_scan
from tests.sharding.devices.cases import largest_gap, mesh_of

pytestmark = pytest.mark.slow

BATCH, TIME, HEADS, DIM = 2, 32, 2, 4


def arrays():
    """Gate logits, keys, values; weights for outputs and states to make one number of them."""
    rng = np.random.default_rng(0)
    logits, k, v, *wide = (
        rng.normal(size=(BATCH, TIME, HEADS, DIM)).astype(np.float32) for _ in range(5)
    )
    states = [rng.normal(size=(BATCH, HEADS, DIM)).astype(np.float32) for _ in range(2)]
    logits *= 4
    # By channel: gates of nearly one, whose product stays; of nearly zero, whose product
    # underflows (e^-1280 over eight positions); a restart within each part; and a padded end.
    logits[..., 0] += 12
    logits[..., 1] -= 160
    logits[:, 3::8, :, 2] = -np.inf
    logits[:, -5:, :, 3] = np.inf
    return (logits, k, v), (*wide, *states)


def differentiate(scan, mesh, inputs, weights):
    def total(*inputs):
        out, state = scan(*inputs)
        pairs = zip((*out, *state), weights, strict=True)
        return sum((x * w).sum() for x, w in pairs), (out, state)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return jax.device_get(on_mesh(mesh, gradient)(*inputs))


@pytest.mark.parametrize(
    "sizes",
    [(2, 1, 1, 4), (1, 1, 1, 8), (1, 1, 2, 2)],
)
def test_the_scan_carries_its_state_over_devices(sizes):
    mesh = mesh_of(sizes)
    inputs, weights = arrays()
    expected = differentiate(
        lambda *a: decay_scan(*a, return_state=True, implementation="reference"),
        None,
        inputs,
        weights,
    )
    place = sharding(mesh, "batch", "time", "kv_heads", "head_dim")
    placed = jax.device_put(inputs, place)
    found = differentiate(sharded_decay_scan, mesh, placed, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    # float32 sums in another order: outputs of size 1, gradients of size up to 10
    assert largest_gap(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes"),
    [
        (8, 8, (1, 1, 2, 4)),  # heads change places with time
        (8, 2, (1, 1, 1, 8)),  # too few key/value heads for that: gathered, four read each
        (8, 2, (2, 1, 2, 2)),
    ],
)
def test_attention_over_time_cut_up(heads, kv_heads, sizes):
    mesh = mesh_of(sizes)
    rng = np.random.default_rng(0)
    q, k, v, weights = (
        rng.normal(size=(BATCH, TIME, n, DIM)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    )

    def gradient(attend, mesh):
        total = lambda q, k, v: (attend(q, k, v) * weights).sum()  # noqa: E731
        return on_mesh(mesh, jax.jit(jax.grad(total, argnums=(0, 1, 2))))

    places = [sharding(mesh, "batch", "time", n, "head_dim") for n in ("heads", *["kv_heads"] * 2)]
    found = gradient(lambda *a: attend_by_heads(prefill, *a), mesh)(
        *map(jax.device_put, (q, k, v), places)
    )
    expected = gradient(prefill, None)(*map(jnp.asarray, (q, k, v)))
    for array, place in zip(found, places, strict=True):
        assert array.sharding == place
    assert largest_gap(found, expected) < 1e-5
