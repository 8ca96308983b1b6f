"""SnapKV's CUDA kernels, votes and choice: compiled ahead, and run against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import window_scores
from ratjax_kernels.compaction import kept_positions
from tests.kernels import oracle
from tests.kernels.devices import (
    ON_GPU,
    assert_rounded_like,
    check_compiles,
    compiles_triton,
    runs_triton,
)


@compiles_triton
@pytest.mark.parametrize("kv_heads", [8, 32])
def test_scores_compile_to_machine_code(kv_heads, capability, capsys):
    shapes = [((1, 64, 32, 128), "bfloat16"), ((1, 131072, kv_heads, 128), "bfloat16")]
    shapes = [jax.ShapeDtypeStruct(*x) for x in (*shapes, ((1,), "int32"))]
    run = functools.partial(window_scores, implementation="triton")
    for name, usage in check_compiles(capsys, capability, run, *shapes):
        assert capability != 90 or usage.spilled <= 64, name
        assert usage.shared <= (163 if capability == 80 else 227) * 1024, name


@compiles_triton
def test_choice_compiles_to_machine_code(capability, capsys):
    run = functools.partial(kept_positions, window=64, capacity=4096, implementation="triton")
    shapes = [((1, 8, 131072), "float32"), ((1,), "int32")]
    check_compiles(capsys, capability, run, *(jax.ShapeDtypeStruct(*x) for x in shapes))


def _inputs(slots, window, heads, kv_heads, channels, dtype, lengths):
    rng = np.random.default_rng(slots)
    batch = len(lengths)
    q = oracle.normal(rng, (batch, window, heads, channels), dtype)
    k = oracle.normal(rng, (batch, slots, kv_heads, channels), dtype)
    return q, k, jnp.asarray(lengths, jnp.int32)


@functools.partial(jax.jit, static_argnums=3)
def _scores(q, k, lengths, implementation):
    return window_scores(q, k, lengths, implementation)


SHAPES = [  # slots, window, heads, kv_heads, channels, dtype, lengths
    (1, 4, 1, 1, 16, jnp.float32, (1,)),
    (63, 7, 4, 2, 24, jnp.float32, (63, 20, 3)),
    (300, 16, 2, 2, 16, jnp.bfloat16, (300, 0)),
    (300, 40, 8, 1, 16, jnp.float16, (257,)),  # more rows than a tile holds
]
LONG = [
    (4097, 64, 8, 2, 128, jnp.bfloat16, (4097, 1000, 5)),
    (4097, 64, 8, 2, 64, jnp.float16, (4096, 63, 0)),
    (4097, 64, 8, 2, 80, jnp.float32, (4097, 1000, 5)),
    (1025, 64, 8, 2, 256, jnp.bfloat16, (1025, 1000, 5)),
    (20000, 64, 32, 32, 128, jnp.bfloat16, (20000, 12345)),
]


@runs_triton
@pytest.mark.parametrize("shape", SHAPES + LONG * ON_GPU)
def test_votes(shape):
    q, k, lengths = _inputs(*shape)
    wide = (x.astype(jnp.float32) for x in (q, k))
    want = np.asarray(_scores(*wide, lengths, "reference"))
    behind = np.arange(shape[0]) >= np.asarray(lengths)[:, None]
    k = oracle.poisoned(k, ~behind)
    have = np.asarray(_scores(q, k, lengths, "triton"))
    # Nothing is rounded below float32, whatever the inputs' dtype: sums of up to 64 terms.
    np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-6)
    assert_rounded_like(have, _scores(q, k, lengths, "xla"), want, least=1e-5)
    np.testing.assert_array_equal(np.where(behind[:, None], have, 0), 0)
    np.testing.assert_array_equal(have, _scores(q, k, lengths, "triton"))


@runs_triton
def test_many_programs_of_few_keys(monkeypatch):
    """Stretches that end within a tile, before, in and behind the window."""
    from ratjax_kernels.window_scores import triton as kernels

    monkeypatch.setattr(kernels, "_STRETCHES", (48, 48))
    q, k, lengths = _inputs(200, 50, 2, 1, 16, jnp.bfloat16, (200, 96))
    want = _scores(q, k, lengths, "reference")
    jax.clear_caches()
    np.testing.assert_allclose(_scores(q, k, lengths, "triton"), want, rtol=1e-5, atol=1e-6)
    jax.clear_caches()


@runs_triton
def test_queries_at_negative_positions_may_hold_nan():
    q, k, lengths = _inputs(40, 8, 2, 1, 16, jnp.float32, (3,))
    poisoned = oracle.poisoned(q, (np.arange(8) >= 5)[None])
    np.testing.assert_array_equal(
        _scores(poisoned, k, lengths, "triton"), _scores(q, k, lengths, "triton")
    )


@runs_triton
def test_votes_under_vmap_and_scan():
    q, k, lengths = _inputs(40, 8, 2, 1, 16, jnp.float32, (40, 9))
    want = _scores(q, k, lengths, "triton")
    single = (q[:, None], k[:, None], lengths[:, None])
    mapped = jax.jit(jax.vmap(lambda *x: _scores(*x, "triton")))(*single)
    scanned = jax.lax.scan(lambda c, x: (c, _scores(*x, "triton")), 0, single)[1]
    np.testing.assert_array_equal(mapped[:, 0], want)
    np.testing.assert_array_equal(scanned[:, 0], want)


def _ranked(kind, slots, seed=0):
    x = np.random.default_rng(seed).standard_normal((2, 2, slots)).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    if kind == "zeros":
        x = np.where(x > 0, 0.0, -0.0).astype(np.float32)
    if kind == "infinite":
        x[:, 0, :9], x[:, 1, 5:] = np.inf, -np.inf
    return x


CASES = [  # slots, lengths, window, capacity, chunk
    (1, (1, 1), 1, 1, 4096),
    (300, (300, 3), 4, 50, 128),
    (300, (257, 0), 16, 100, 4096),
    (130, (130, 64), 8, 200, 128),
] + [(131072, (131072, 70000), 64, 4096, 4096)] * ON_GPU


@runs_triton
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "infinite"])
@pytest.mark.parametrize("slots,lengths,window,capacity,chunk", CASES)
def test_choice(kind, slots, lengths, window, capacity, chunk, monkeypatch):
    from ratjax_kernels.compaction import triton as kernels

    monkeypatch.setattr(kernels, "_LONGEST_CHUNK", chunk)
    kernels._launch.cache_clear()
    scores = _ranked(kind, slots)
    scores[np.arange(slots) >= np.broadcast_to(np.array(lengths)[:, None, None], scores.shape)] = (
        np.nan
    )
    args = jnp.asarray(scores), jnp.asarray(lengths, jnp.int32), window, capacity
    want = kept_positions(*args, "reference")
    np.testing.assert_array_equal(kept_positions(*args, "triton"), want)
    np.testing.assert_array_equal(kept_positions(*args, "xla"), want)


@runs_triton
def test_choice_under_vmap():
    scores, lengths = jnp.asarray(_ranked("normal", 50)), jnp.asarray([50, 20], jnp.int32)
    want = kept_positions(scores, lengths, 4, 10, "reference")
    run = jax.vmap(lambda s, n: kept_positions(s, n, 4, 10, "triton"))
    np.testing.assert_array_equal(run(scores[:, None], lengths[:, None])[:, 0], want)
