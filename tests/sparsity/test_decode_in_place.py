"""Decoding from stacked caches: the same as from one layer, and no layer is copied out of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from ratjax_kernels import prefer
from tests.kernels import devices

PATTERNS = [
    Dense(),
    Quest(4, 3),
    Quest(4, 3, per="kv_head"),
    Quest(4, 3, selector="random"),
    SnapKV(window=4, capacity=11),
    Dilated(4, local=3, initial=2),
]
LAYERS, BATCH, TIME, HEADS, KV_HEADS, DIM = 3, 2, 21, 4, 2, 16


def drawn(seed, time, heads):
    normal = np.random.default_rng((seed, heads)).normal(size=(BATCH, time, heads, DIM))
    return jnp.asarray(normal.astype("float32"))


def token(seed, heads):
    return drawn(seed, 1, heads)


def caches(pattern):
    """One cache a layer, after a prompt of mixed lengths."""
    lengths = jnp.array([TIME, 13], jnp.int32)
    keys = jax.random.split(jax.random.key(1), BATCH)
    made = []
    compress = jax.jit(pattern.compress, static_argnums=4)
    for layer in range(LAYERS):
        q, k, v = (
            drawn(10 * layer + seed, TIME, heads)
            for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))
        )
        made.append(compress(q, k, v, lengths, 3, keys))
    return made


def step(pattern, cache, layer):
    """Three tokens appended to one layer and the last one's attention."""
    keys = jax.random.split(jax.random.key(2), BATCH)
    for seed in range(3):
        cache = cache.append(layer, token(seed, KV_HEADS), token(seed + 9, KV_HEADS))
    return pattern.decode(token(99, HEADS), cache.layer(layer), keys), cache


def same(have, want):
    for h, w in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(h, w)


def stacked(made):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_layer_of_a_stack_is_a_cache_of_its_own(pattern):
    made, run = caches(pattern), jax.jit(functools.partial(step, pattern))
    for layer in (0, 2):
        (out, reads), grown = run(stacked(made), jnp.int32(layer))
        (alone, counted), _ = run(stacked(made[layer : layer + 1]), jnp.int32(0))
        np.testing.assert_array_equal(out, alone)
        same(reads, counted)
        for before, after in zip(
            jax.tree.leaves(stacked(made)), jax.tree.leaves(grown), strict=True
        ):
            np.testing.assert_array_equal(after[1], before[1])


@devices.runs_triton
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_kernels_read_the_stack_where_it_lies(pattern):
    cache = stacked(caches(pattern))
    run = functools.partial(step, pattern)
    with prefer("xla"):
        (want, reads), grown = jax.jit(run)(cache, jnp.int32(1))
        plain = str(jax.make_jaxpr(run)(cache, jnp.int32(1)))
    jax.clear_caches()
    with prefer("triton"):
        (have, counted), by_kernel = jax.jit(run)(cache, jnp.int32(1))
        program = str(jax.make_jaxpr(run)(cache, jnp.int32(1)))
    jax.clear_caches()
    layer = "f32[" + ",".join(map(str, cache.k.shape[1:])) + "]"
    assert layer in plain
    assert layer not in program
    np.testing.assert_allclose(have, want, atol=1e-5)
    same(counted, reads)
    same(by_kernel, grown)
