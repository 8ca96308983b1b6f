"""MoBA's Triton kernels: choosing blocks, attention over the chosen, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import block_means, block_prefill, block_select
from tests.kernels import oracle
from tests.kernels.devices import (
    ON_GPU,
    assert_rounded_like,
    check_compiles,
    compiles_triton,
    runs_triton,
)


def inputs(length, heads, kv_heads, channels, dtype, batch=1, seed=0):
    """q, k, v and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    counts = (heads, kv_heads, kv_heads, heads)
    return tuple(oracle.normal(rng, (batch, length, n, channels), dtype) for n in counts)


def random_lists(length, block_size, kept, heads, batch=1, seed=0):
    """Any blocks in any order: repeated, not begun yet, -1, sometimes nothing at all."""
    rng = np.random.default_rng(seed)
    blocks = -(-length // block_size)
    ids = rng.integers(-1, blocks, (batch, heads, length, kept))
    ids[rng.random((batch, heads, length)) < 0.1] = -1
    return jnp.asarray(ids, jnp.int32)


def outputs_and_gradients(implementation, q, k, v, weights, ids, block_size):
    @jax.jit
    def both(q, k, v, weights, ids):
        run = functools.partial(
            block_prefill, block_ids=ids, block_size=block_size, implementation=implementation
        )
        out, pull = jax.vjp(run, q, k, v)
        return out, *pull(weights.astype(out.dtype))

    return [np.asarray(x, np.float64) for x in both(q, k, v, weights, ids)]


def compare(q, k, v, weights, ids, block_size):
    """Triton against the float32 reference, beside what plain JAX loses, and against itself."""
    args = (q, k, v, weights)
    wide = tuple(x.astype(jnp.float32) for x in args)
    want = outputs_and_gradients("reference", *wide, ids, block_size)
    plain = outputs_and_gradients("xla", *args, ids, block_size)
    have = outputs_and_gradients("triton", *args, ids, block_size)
    again = outputs_and_gradients("triton", *args, ids, block_size)
    for h, p, w, a in zip(have, plain, want, again, strict=True):
        np.testing.assert_array_equal(h, a)
        # float32: sums in another order, and products of three narrow parts on matrix units.
        assert_rounded_like(h, p, w, least=3e-6)


# Length, query heads, key/value heads, channels, block size, slots, dtype.
SMALL = [
    (1, 2, 1, 16, 16, 2, jnp.float32),
    (63, 4, 2, 24, 8, 3, jnp.bfloat16),
    (130, 2, 2, 16, 48, 2, jnp.float32),
    (70, 2, 1, 16, 16, 4, jnp.float16),
]
LARGE = [
    (4097, 4, 2, 128, 128, 8, jnp.bfloat16),
    (4097, 2, 2, 64, 64, 4, jnp.float16),
    (1000, 2, 1, 128, 128, 3, jnp.float32),
    (1024, 2, 2, 256, 128, 4, jnp.bfloat16),
    (2048, 4, 1, 80, 256, 3, jnp.bfloat16),
]
SHAPES = SMALL + (LARGE if ON_GPU else [])


@runs_triton
@pytest.mark.parametrize("length,heads,kv_heads,channels,block_size,kept,dtype", SHAPES)
def test_any_lists(length, heads, kv_heads, channels, block_size, kept, dtype):
    arrays = inputs(length, heads, kv_heads, channels, dtype)
    compare(*arrays, random_lists(length, block_size, kept, heads), block_size)


@runs_triton
def test_long_lists_are_walked_in_segments(monkeypatch):
    from ratjax_kernels.block_prefill import triton_launch

    # All rows list blocks 0 and 1, which makes several forward and backward items of each.
    for name in ("VISIT", "GRADIENTS"):
        tiles = getattr(triton_launch, name)
        monkeypatch.setattr(triton_launch, name, tiles._replace(rows=16, segment=32))
    monkeypatch.setattr(triton_launch, "SMALL", triton_launch.SMALL._replace(rows=16))
    ids = jnp.broadcast_to(jnp.asarray([1, 0], jnp.int32), (1, 2, 150, 2))
    compare(*inputs(150, 2, 1, 16, jnp.float32), ids, 16)


@runs_triton
def test_values_that_are_not_listed_may_be_nan():
    q, k, v, weights = inputs(72, 2, 2, 16, jnp.float32)
    ids = np.array(random_lists(72, 8, 3, 2))
    ids[ids == 2] = -1
    ids[:, :, 40:][ids[:, :, 40:] == 0] = -1  # listed by earlier queries alone
    clean = outputs_and_gradients("triton", q, k, v, weights, jnp.asarray(ids), 8)
    kept = np.arange(72)[None] // 8 != 2
    k, v = oracle.poisoned(k, kept), oracle.poisoned(v, kept)
    have = outputs_and_gradients("triton", q, k, v, weights, jnp.asarray(ids), 8)
    for h, c in zip(have, clean, strict=True):
        np.testing.assert_array_equal(h, c)
    # A block that others list: queries that do not are not touched, not even in the same tile.
    v = oracle.poisoned(v, np.arange(72)[None] >= 8)
    out = outputs_and_gradients("triton", q, k, v, weights, jnp.asarray(ids), 8)[0]
    without = ~(ids == 0).any(-1)[0].T  # [T, H]
    np.testing.assert_array_equal(out[0][without], clean[0][0][without])


@runs_triton
@pytest.mark.parametrize(
    "dtype,force_first", [(jnp.float32, True), (jnp.bfloat16, False), (jnp.float16, True)]
)
def test_selects_what_the_reference_selects_with_many_ties(dtype, force_first):
    length, heads, kv_heads, channels, block_size = 101, 4, 2, 24, 4
    rng = np.random.default_rng(0)
    # Small integers: products, sums and means over 4 are exact everywhere, and most scores tie.
    q, k = (
        jnp.asarray(rng.integers(-1, 2, (2, length, n, channels)), dtype) for n in (heads, kv_heads)
    )
    means = block_means(k, block_size)
    settings = {
        "block_size": block_size,
        "blocks": 5 if force_first else 8,
        "force_first": force_first,
    }
    want, plain, have = (
        oracle.run(block_select, q, means, implementation=name, **settings)
        for name in ("reference", "xla", "triton")
    )
    np.testing.assert_array_equal(plain, want)
    np.testing.assert_array_equal(have, want)


@runs_triton
@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy on padding rows: 0 * inf
def test_selection_by_random_scores_and_infinite_ones():
    q, k, _, _ = inputs(190, 2, 1, 40, jnp.bfloat16)
    means = block_means(k, 6)
    run = functools.partial(oracle.run, block_select, block_size=6, blocks=4)
    want = run(q, means, implementation="reference")
    have = run(q, means, implementation="triton")
    # Random scores in float32: two of them are closer than a rounding once in about 10^5 rows.
    assert (np.asarray(have) != np.asarray(want)).any(-1).mean() < 1e-3
    means = means.at[:, 3].set(jnp.inf).at[:, 5].set(-jnp.inf)
    q = jnp.abs(q)
    want = run(q, means, implementation="xla")
    have = np.asarray(run(q, means, implementation="triton"))
    assert (have[:, :, 24:] == 3).any(-1).all()
    assert (have == np.asarray(want)).mean() > 0.999


@runs_triton
def test_works_under_vmap_and_scan():
    q, k, v, weights = inputs(37, 2, 1, 16, jnp.float32, batch=2)

    def both(q, k, v):
        ids = block_select(q, block_means(k, 8), 8, 3, implementation="triton")
        return block_prefill(q, k, v, ids, 8, "triton")

    def loss(q, k, v, weights):
        return (both(q, k, v) * weights).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    want = gradients(q, k, v, weights)
    single = tuple(x[:, None] for x in (q, k, v, weights))
    mapped = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2))))(*single)
    scanned = jax.lax.scan(lambda c, x: (c, jax.grad(loss, (0, 1, 2))(*x)), 0, single)[1]
    for w, m, s in zip(want, mapped, scanned, strict=True):
        np.testing.assert_array_equal(m[:, 0], w)
        np.testing.assert_array_equal(s[:, 0], w)


@runs_triton
def test_says_what_it_does_not_serve():
    q, k, v, _ = inputs(300, 1, 1, 16, jnp.float32)
    ids = jnp.zeros((1, 1, 300, 1), jnp.int32)
    with pytest.raises(ValueError, match="cannot cut block_size=257"):
        block_prefill(q, k, v, ids, 257, "triton")
    with pytest.raises(ValueError, match="at most 64 tiles"):
        block_prefill(q, k, v, jnp.repeat(ids, 65, axis=3), 128, "triton")
    q, k, _, _ = inputs(1025, 1, 1, 16, jnp.float32)
    with pytest.raises(ValueError, match="chooses among at most 1024 blocks, not 1025"):
        block_select(q, block_means(k, 1), 1, 2, implementation="triton")


@compiles_triton
@pytest.mark.parametrize(
    "length,block_size,kept,dtype",
    [
        (32768, 128, 8, jnp.bfloat16),
        (65536, 64, 8, jnp.bfloat16),
        (4096, 64, 16, jnp.float32),
    ],
)
def test_compiles_to_machine_code(capability, length, block_size, kept, dtype, capsys, monkeypatch):
    from ratjax_kernels.block_prefill import triton_launch

    monkeypatch.setattr(triton_launch, "has_tensor_memory", lambda: capability >= 100)

    def train(q, k, v):
        means = block_means(k, block_size)
        ids = block_select(q, means, block_size, kept, implementation="triton")
        run = functools.partial(
            block_prefill, block_ids=ids, block_size=block_size, implementation="triton"
        )
        out, pull = jax.vjp(run, q, k, v)
        return pull(out)

    shape = jax.ShapeDtypeStruct((2, length, 16, 128), dtype)
    used = check_compiles(capsys, capability, train, shape, shape, shape)
    assert {name for name, _ in used} >= {"select_kernel", "visit_kernel", "gradients_kernel"}
    # A kernel that needs more tensor memory than there is compiles to a trap.
    assert min(usage.registers for _, usage in used) > 16
    largest = 166912 if capability == 80 else 232448
    assert max(usage.shared for _, usage in used) <= largest
