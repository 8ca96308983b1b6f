"""Operations inside `jax.shard_map`, which follows along which mesh axes arrays differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ratjax_kernels import (
    append,
    block_means,
    block_prefill,
    block_select,
    decay_scan,
    dense_decode,
    dense_prefill,
    kept_positions,
    page_bounds,
    page_scores,
    quest_decode,
    strided_prefill,
    window_scores,
)
from tests.kernels import oracle

LENGTH = 24
HEADS = PartitionSpec(None, None, "heads")  # of [B, T, H, D]
OTHER = PartitionSpec(None, "heads")  # of [B, H, ...]
ALIKE = PartitionSpec()


def heads(length=LENGTH, count=2):
    return oracle.normal(np.random.default_rng(length + count), (2, length, count, 8))


def integers(*shape, most=LENGTH):
    return jnp.asarray(np.random.default_rng(0).integers(0, most, shape), jnp.int32)


def sharded(function, in_specs, out_specs):
    # Types are the same on a mesh of one device.
    mesh = jax.make_mesh((1,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


both = pytest.mark.parametrize("implementation", ["reference", "xla"])


@both
@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, implementation: decay_scan(q, k, v, implementation=implementation),
        dense_prefill,
        lambda q, k, v, name: strided_prefill(q, k, v, 4, 3, 1, name),
        lambda q, k, v, name: block_prefill(q, k, v, integers(2, 2, LENGTH, 2, most=3), 8, name),
    ],
    ids=["decay_scan", "dense_prefill", "strided_prefill", "block_prefill"],
)
def test_what_is_trained_through(function, implementation):
    args = heads(), heads(count=2) + 1, heads() * 2

    def run(*x):
        return function(*x, implementation)

    def gradients(run):
        return jax.grad(lambda *x: sum(y.sum() for y in jax.tree.leaves(run(*x))), (0, 1, 2))(*args)

    inside = sharded(run, HEADS, HEADS)
    jax.tree.map(np.testing.assert_array_equal, inside(*args), jax.jit(run)(*args))
    for have, want in zip(gradients(inside), gradients(run), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5)  # sums in another order


LENGTHS = jnp.asarray([LENGTH, 5], jnp.int32)
BOUNDS = [heads(3), heads(3) + 1]
DECODE = {
    "append": (
        lambda k, new, lengths, *bounds, name: append(k, k, lengths, new, new, bounds, 8, name),
        (heads(), heads(1), LENGTHS, *BOUNDS), (HEADS, HEADS, ALIKE, HEADS, HEADS), HEADS,
    ),
    "dense_decode": (
        lambda q, k, lengths, name: dense_decode(q, k, k, lengths, name),
        (heads(1), heads(), LENGTHS), (HEADS, HEADS, ALIKE), HEADS,
    ),
    "page_bounds": (
        lambda k, lengths, name: page_bounds(k, lengths, 8, name),
        (heads(), LENGTHS), (HEADS, ALIKE), HEADS,
    ),
    "page_scores": (
        lambda q, *bounds, name: page_scores(q, *bounds, name),
        (heads(1), *BOUNDS), HEADS, OTHER,
    ),
    "quest_decode": (
        lambda q, k, lengths, *bounds, name: quest_decode(
            q, k, k, lengths, *bounds, 8, 2, implementation=name
        ),
        (heads(1), heads(), LENGTHS, *BOUNDS), (HEADS, HEADS, ALIKE, HEADS, HEADS), (HEADS, OTHER),
    ),
    "window_scores": (
        lambda q, k, lengths, name: window_scores(q, k, lengths, name),
        (heads(4), heads(), LENGTHS), (HEADS, HEADS, ALIKE), OTHER,
    ),
    "kept_positions": (
        lambda scores, lengths, name: kept_positions(scores, lengths, 4, 8, name),
        (heads(2)[..., 0, :], LENGTHS), (OTHER, ALIKE), OTHER,
    ),
    "block_select": (
        lambda q, k, name: block_select(q, block_means(k, 8, name), 8, 2, implementation=name),
        (heads(), heads()), HEADS, OTHER,
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize("operation", DECODE)
def test_what_inference_runs(operation, implementation):
    function, args, in_specs, out_specs = DECODE[operation]

    def run(*x):
        return function(*x, name=implementation)

    have = sharded(run, in_specs, out_specs)(*args)
    jax.tree.map(np.testing.assert_array_equal, have, jax.jit(run)(*args))
