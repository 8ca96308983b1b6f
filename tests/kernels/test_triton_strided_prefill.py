"""The CUDA kernels of dilated attention: compiled ahead, and run against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import strided_prefill
from tests.kernels import oracle
from tests.kernels.devices import (
    ON_GPU,
    assert_rounded_like,
    check_compiles,
    compiles_triton,
    needs_gpu,
    runs_triton,
)

# dilation, local, initial
PATTERNS = [(1, 0, 0), (16, 0, 0), (16, 0, 4), (8, 20, 3), (64, 33, 0), (-1, 7, 2), (-1, 0, 0)]


@compiles_triton
@pytest.mark.parametrize("pattern", [(16, 0, 4), (16, 256, 0), (1, 0, 0)])
def test_compiles_to_machine_code(pattern, capability, capsys):
    x = jax.ShapeDtypeStruct((1, 32768, 32, 128), jnp.bfloat16)

    def step(q, k, v, d_out):
        run = functools.partial(_run, pattern=pattern)
        return jax.vjp(run, q, k, v)[1](d_out)

    for name, usage in check_compiles(capsys, capability, step, x, x, x, x):
        # Tiles were chosen on sm_90. The band's gradients may spill: they walk over few tiles.
        assert capability != 90 or usage.spilled <= 256 * (name == "keys_kernel"), name
        assert usage.shared <= (163 if capability == 80 else 227) * 1024, name


def _run(q, k, v, pattern, implementation="triton"):
    return strided_prefill(q, k, v, *pattern, implementation)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _output_and_gradients(q, k, v, d_out, pattern, implementation):
    out, pull = jax.vjp(lambda *x: _run(*x, pattern, implementation), q, k, v)
    return (out, *pull(d_out))


def _inputs(length, batch, heads, kv_heads, channels, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        oracle.normal(rng, (batch, length, n, channels), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )


def _check(pattern, *shape, dtype):
    args = _inputs(*shape, dtype)
    want = _output_and_gradients(*(x.astype(jnp.float32) for x in args), pattern, "reference")
    plain = _output_and_gradients(*args, pattern, "xla")
    have = _output_and_gradients(*args, pattern, "triton")
    again = _output_and_gradients(*args, pattern, "triton")
    for h, p, w, a in zip(have, plain, want, again, strict=True):
        assert h.dtype == dtype
        if np.abs(w).max() == 0:  # no gradient reaches the scores of a single key
            # Rounding leaves differences of nearly equal terms of order one.
            assert np.abs(np.asarray(h, np.float32)).max() <= (
                1e-5 if dtype == jnp.float32 else 1e-1
            )
        else:
            assert_rounded_like(h, p, w)
        np.testing.assert_array_equal(np.asarray(h), np.asarray(a))


@runs_triton
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern(pattern):
    # Two tiles of queries, the second ragged.
    _check(pattern, 70, 1, 2, 1, 16, dtype=jnp.float32)


@runs_triton
@pytest.mark.parametrize(
    "length,channels,dtype",
    [(1, 16, jnp.float32), (63, 24, jnp.bfloat16), (150, 16, jnp.float16), (150, 16, jnp.bfloat16)],
)
@pytest.mark.parametrize("pattern", [(4, 0, 9), (4, 5, 40)])
def test_odd_lengths_and_narrow_numbers(pattern, length, channels, dtype):
    _check(pattern, length, 1, 2, 2, channels, dtype=dtype)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "pattern,length,channels,dtype",
    [
        ((16, 256, 4), 4097, 128, jnp.bfloat16),
        ((64, 0, 0), 4097, 64, jnp.float16),
        ((16, 0, 4), 1025, 128, jnp.bfloat16),
        ((8, 33, 300), 1025, 80, jnp.bfloat16),
        ((1, 0, 0), 1025, 128, jnp.bfloat16),
        ((-1, 128, 4), 1025, 256, jnp.bfloat16),
        ((16, 20, 4), 1025, 128, jnp.float32),
        ((4, 0, 3), 1025, 256, jnp.float32),
    ],
)
def test_long_sequences(pattern, length, channels, dtype):
    _check(pattern, length, 2, 4, 2, channels, dtype=dtype)


@needs_gpu
@pytest.mark.gpu
def test_more_stretches_than_one():
    # One tile of far keys and two heads: the queries are cut so that programs suffice.
    _check((64, 0, 0), 8200, 1, 2, 1, 128, dtype=jnp.bfloat16)


@runs_triton
def test_equal_scores_are_an_average():
    """Keys that are all alike: each query takes the plain mean of what it sees."""
    length, pattern = 40, (8, 0, 2)
    _, _, v, _ = _inputs(length, 1, 1, 1, 16, jnp.float32)
    alike = jnp.ones((1, length, 1, 16))
    have = jax.jit(lambda *x: _run(*x, pattern))(alike, alike, v)
    for i in (0, 1, 7, 8, 39):
        seen = [j for j in range(i + 1) if (j + 1) % 8 == 0 or j == i or j < 2]
        np.testing.assert_allclose(have[0, i, 0], v[0, seen, 0].mean(axis=0), atol=1e-6)


@runs_triton
def test_later_far_keys_may_hold_nan():
    """What stands behind a prompt does not reach queries of earlier tiles."""
    args = _inputs(70, 1, 1, 1, 16, jnp.float32)
    keep = np.arange(70)[None] < 64
    q, k, v = (oracle.poisoned(x, keep) for x in args[:3])
    have = jax.jit(lambda *x: _run(*x, (8, 0, 2)))(q, k, v)
    want = jax.jit(lambda *x: _run(*x, (8, 0, 2)))(*args[:3])
    np.testing.assert_array_equal(have[:, :64], want[:, :64])


@runs_triton
def test_batching_scanning_and_their_gradients():
    q, k, v, d_out = _inputs(20, 2, 2, 1, 16, jnp.float32)

    def loss(q, k, v, d_out, implementation):
        return (_run(q, k, v, (4, 3, 1), implementation) * d_out).sum()

    slope = jax.grad(loss, argnums=(0, 1, 2))
    want = jax.jit(lambda *x: slope(*x, "reference"))(q, k, v, d_out)
    single = tuple(x[:, None] for x in (q, k, v, d_out))
    mapped = jax.jit(jax.vmap(lambda *x: slope(*x, "triton")))(*single)
    scanned = jax.jit(
        lambda *x: jax.lax.scan(lambda c, x: (c, slope(*x, "triton")), 0, x)[1],
    )(*single)
    for w, m, s in zip(want, mapped, scanned, strict=True):
        np.testing.assert_allclose(m[:, 0], w, atol=1e-5)
        np.testing.assert_allclose(s[:, 0], w, atol=1e-5)


@runs_triton
def test_what_it_cannot_serve():
    q, k, v, _ = _inputs(4, 1, 1, 1, 272, jnp.float32)
    with pytest.raises(ValueError, match="serves head dims up to 256, not 272"):
        _run(q, k, v, (4, 0, 0))


@needs_gpu
@pytest.mark.gpu
def test_is_the_default_on_a_gpu():
    assert ON_GPU
    q, k, v, _ = _inputs(64, 1, 1, 1, 32, jnp.bfloat16)
    text = {i: jax.jit(lambda *x, i=i: _run(*x, (4, 0, 0), i)).lower(q, k, v).as_text()
            for i in (None, "xla")}  # fmt: skip
    assert "custom_call" in text[None] and "custom_call" not in text["xla"]
