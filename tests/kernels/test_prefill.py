import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ratjax_kernels import (
    block_means,
    block_prefill,
    dense_prefill,
    masked_attention,
    strided_prefill,
    window_scores,
)
from tests.kernels import oracle

# For operations that treat queries in chunks; the others have nothing more to show in small ones.
chunked = pytest.mark.parametrize(
    "implementation", ["reference", "xla", "xla_small_chunks"], indirect=True
)


@pytest.fixture(params=["reference", "xla"])
def implementation(request, monkeypatch):
    name, _, small_chunks = request.param.partition("_")
    if small_chunks:
        monkeypatch.setattr(masked_attention, "_CHUNK_SCORES", 2**11)
    return name


def inputs(length, heads=4, kv_heads=2, dtype=jnp.float32, batch=2, channels=8, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        oracle.normal(rng, (batch, length, n, channels), dtype) for n in (heads, kv_heads, kv_heads)
    )


def random_blocks(length, block_size, count, heads=4, batch=2, seed=0):
    """Random distinct past blocks in random order, some -1, the own block only by chance."""
    rng = np.random.default_rng(seed)
    ids = np.full((batch, heads, length, count), -1, np.int32)
    for b, h, i in np.ndindex(ids.shape[:3]):
        some = rng.permutation(i // block_size + 1)[:count]
        ids[b, h, i, : len(some)] = some
        rng.shuffle(ids[b, h, i])
    return ids


def same_gradients(loss_of, args, rtol, atol):
    wanted = tuple(range(len(args)))
    have, want = (
        jax.jit(jax.grad(functools.partial(loss_of, name), argnums=wanted))(*args)
        for name in ("xla", "reference")
    )
    for a, b in zip(have, want, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol, atol)


@pytest.mark.parametrize("length,block_size", [(1, 4), (16, 4), (65, 16)])
def test_block_means_average_what_is_there(implementation, length, block_size):
    _, k, _ = inputs(length, dtype=jnp.bfloat16)
    have = oracle.run(block_means, k, block_size=block_size, implementation=implementation)
    assert have.dtype == jnp.float32 and have.shape[1] == -(-length // block_size)
    have = np.asarray(have)
    for p in range(have.shape[1]):
        want = oracle.as64(k)[:, p * block_size : (p + 1) * block_size].mean(axis=1)
        np.testing.assert_allclose(have[:, p], want, rtol=1e-6, atol=1e-6)


@functools.cache  # for all implementations
def block_case(length, kv_heads, block_size, dtype):
    """(q, k, v, ids), and what attention is to give."""
    q, k, v = inputs(length, 4, kv_heads, dtype)
    ids = random_blocks(length, block_size, 3)

    def rows(b, t, h):
        listed = ids[b, h, t].tolist()
        return [j for j in range(t + 1) if j // block_size in listed]

    return (q, k, v, jnp.asarray(ids)), oracle.attend(q, k, v, rows)


@chunked
@pytest.mark.parametrize(
    "length,kv_heads,block_size,dtype",
    [
        (1, 4, 4, jnp.float32),
        (63, 4, 8, jnp.float32),
        (65, 2, 16, jnp.float32),
        (65, 2, 16, jnp.bfloat16),
    ],
)
def test_block_prefill_reads_the_list(implementation, length, kv_heads, block_size, dtype):
    args, want = block_case(length, kv_heads, block_size, dtype)
    have = oracle.run(block_prefill, *args, block_size=block_size, implementation=implementation)
    assert have.dtype == dtype
    oracle.assert_attention_close(have, *want)


@chunked
def test_unlisted_blocks_may_hold_nan(implementation):
    q, k, v = inputs(40)
    ids = random_blocks(40, 8, 2)
    ids[ids == 1] = -1
    kept = np.arange(40)[None] // 8 != 1

    def total(q, k, v):
        return block_prefill(q, k, v, jnp.asarray(ids), 8, implementation).sum()

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    value, grads = run(q, oracle.poisoned(k, kept), oracle.poisoned(v, kept))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(value, run(q, k, v)[0], rtol=1e-5)


@pytest.mark.parametrize("length,dtype", [(1, jnp.float32), (65, jnp.float32), (65, jnp.bfloat16)])
def test_block_prefill_gradients(length, dtype, monkeypatch):
    monkeypatch.setattr(masked_attention, "_CHUNK_SCORES", 2**11)
    q, k, v = inputs(length, dtype=dtype)
    w = inputs(length, seed=1)[0]
    ids = jnp.asarray(random_blocks(length, 16, 2))

    def loss(name, q, k, v):
        return (w * block_prefill(q, k, v, ids, 16, name).astype(jnp.float32)).sum()

    # bfloat16: the incoming gradient and the probabilities are rounded (2^-8 each) before sums of
    # up to 65 x 2 x 2 terms of order one; float32: roundings of those sums.
    same_gradients(loss, (q, k, v), *((1e-4, 1e-5) if dtype == jnp.float32 else (3e-2, 6e-2)))


def test_a_query_without_blocks_gives_zero():
    q, k, v = inputs(9)
    ids = random_blocks(9, 4, 1)
    ids[:, :, 5] = -1
    for name in ("reference", "xla"):
        out = oracle.run(
            block_prefill, q, k, v, jnp.asarray(ids), block_size=4, implementation=name
        )
        out = np.asarray(out)
        np.testing.assert_array_equal(out[:, 5], 0)
        assert np.abs(out[:, 4]).min() > 0


def visible(i, j, dilation, local, initial):
    strided = dilation > 0 and (j + 1) % dilation == 0
    return j <= i and (strided or i - j <= local or j < initial)


PATTERNS = [(1, 0, 0), (4, 0, 0), (16, 0, 4), (8, 5, 3), (64, 33, 0), (-1, 7, 2), (-1, 0, 0)]


@functools.cache  # for all implementations
def strided_case(length, kv_heads, dtype, pattern):
    """(q, k, v), and what attention is to give."""
    q, k, v = inputs(length, 4, kv_heads, dtype)
    rows = [[j for j in range(t + 1) if visible(t, j, *pattern)] for t in range(length)]
    return (q, k, v), oracle.attend(q, k, v, lambda b, t, h: rows[t])


@chunked
@pytest.mark.parametrize("pattern", PATTERNS)
def test_strided_prefill_is_the_rule(implementation, pattern):
    args, want = strided_case(130, 2, jnp.float32, pattern)
    # A new function each time: what `jit` has traced of an old one has the old chunks.
    have = jax.jit(lambda *x: strided_prefill(*x, *pattern, implementation))(*args)
    oracle.assert_attention_close(have, *want)


@chunked
@pytest.mark.parametrize("length,kv_heads", [(1, 4), (63, 4), (65, 1)])
def test_strided_prefill_in_bfloat16_and_odd_lengths(implementation, length, kv_heads):
    patterns = (8, 5, 100), (8, 5, 3)  # the first reads everything

    def both(*x):
        return [strided_prefill(*x, *pattern, implementation) for pattern in patterns]

    args, _ = strided_case(length, kv_heads, jnp.bfloat16, patterns[0])
    for have, pattern in zip(jax.jit(both)(*args), patterns, strict=True):
        assert have.dtype == jnp.bfloat16
        oracle.assert_attention_close(
            have, *strided_case(length, kv_heads, jnp.bfloat16, pattern)[1]
        )


def test_strided_tiers_change_nothing(monkeypatch):
    from ratjax_kernels.strided_prefill import xla

    monkeypatch.setattr(masked_attention, "_CHUNK_SCORES", 2**11)
    q, k, v = inputs(150)
    want = jax.jit(lambda *x: strided_prefill(*x, 4, 6, 2, "reference"))(q, k, v)
    monkeypatch.setattr(xla, "_LONG", 8)
    have = jax.jit(lambda *x: strided_prefill(*x, 4, 6, 2, "xla"))(q, k, v)
    np.testing.assert_allclose(have, want, atol=2e-6)


@pytest.mark.parametrize(
    "pattern,dtype",
    [((4, 0, 0), jnp.float32), ((8, 5, 3), jnp.float32), ((8, 5, 3), jnp.bfloat16)],
)
def test_strided_prefill_gradients(pattern, dtype, monkeypatch):
    monkeypatch.setattr(masked_attention, "_CHUNK_SCORES", 2**11)
    q, k, v = inputs(65, dtype=dtype)
    w = inputs(65, seed=1)[0]

    def loss(name, q, k, v):
        return (w * strided_prefill(q, k, v, *pattern, name).astype(jnp.float32)).sum()

    # As for block_prefill.
    same_gradients(loss, (q, k, v), *((1e-4, 1e-5) if dtype == jnp.float32 else (3e-2, 6e-2)))


def test_prefill_gradients_match_finite_differences():
    q, k, v = inputs(10, batch=1, heads=2, kv_heads=1, channels=2)
    ids = jnp.asarray(random_blocks(10, 4, 2, heads=2, batch=1))
    # Finite differences in float32: two digits.
    tolerances = {"order": 1, "modes": ["rev"], "atol": 2e-2, "rtol": 2e-2}
    check_grads(jax.jit(lambda *x: block_prefill(*x, ids, 4, "xla")), (q, k, v), **tolerances)
    check_grads(jax.jit(lambda *x: strided_prefill(*x, 4, 2, 1, "xla")), (q, k, v), **tolerances)


@pytest.mark.parametrize(
    "heads,kv_heads,dtype",
    [(4, 4, jnp.float32), (3, 1, jnp.float32), (3, 1, jnp.bfloat16)],
)
@pytest.mark.parametrize("slots,window", [(1, 4), (65, 7)])
def test_window_scores_are_summed_attention(implementation, heads, kv_heads, dtype, slots, window):
    _, k, _ = inputs(slots, heads, kv_heads, dtype, batch=3)
    q = inputs(window, heads, kv_heads, dtype, batch=3, seed=4)[0]
    lengths = np.array([slots, max(slots // 2, 1), 1], np.int32)
    valid = np.arange(slots) < lengths[:, None]
    have = oracle.run(
        window_scores, q, oracle.poisoned(k, valid), lengths, implementation=implementation
    )
    query, key = oracle.as64(q), oracle.as64(k)
    group = heads // kv_heads
    want = np.zeros((3, kv_heads, slots))
    for b, w, h in np.ndindex(3, window, heads):
        at = lengths[b] - window + w
        if at < 0:
            continue
        scores = key[b, : at + 1, h // group] @ query[b, w, h] / np.sqrt(8)
        weights = np.exp(scores - scores.max())
        want[b, h // group, : at + 1] += weights / weights.sum() / group
    # Nothing is rounded below float32, whatever the inputs' dtype.
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.where(valid[:, None], 0, have), 0)
    assert have.dtype == jnp.float32


def test_window_scores_by_head_change_nothing(monkeypatch):
    from ratjax_kernels.window_scores import xla

    _, k, _ = inputs(33, 6, 3)
    q = inputs(5, 6, 3, seed=4)[0]
    lengths = jnp.asarray([33, 20], jnp.int32)
    want = oracle.run(window_scores, q, k, lengths, implementation="reference")
    for held in (1, 2 * 2 * 2 * 5 * 33):  # one head at a time; two and one
        monkeypatch.setattr(xla, "_HELD_SCORES", held)
        have = oracle.run(window_scores, q, k, lengths, implementation="xla")
        np.testing.assert_allclose(have, want, atol=1e-6)


def test_works_under_jit_vmap_and_scan():
    q, k, v = inputs(33)
    ids = jnp.asarray(random_blocks(33, 8, 2))
    lengths = jnp.asarray([33, 12], jnp.int32)

    def all_three(q, k, v, ids, lengths):
        return (
            block_prefill(q, k, v, ids, 8),
            strided_prefill(q, k, v, 4, 2, 1),
            window_scores(q[:, :5], k, lengths),
        )

    args = (q, k, v, ids, lengths)
    want = jax.jit(all_three)(*args)
    single = tuple(np.asarray(x)[:, None] for x in args)
    mapped = jax.jit(jax.vmap(all_three))(*single)
    scanned = jax.lax.scan(lambda carry, x: (carry, all_three(*x)), 0, single)[1]
    for a, b, c in zip(want, *jax.tree.map(np.asarray, (mapped, scanned)), strict=True):
        np.testing.assert_allclose(b[:, 0], a, atol=2e-6)
        np.testing.assert_allclose(c[:, 0], a, atol=2e-6)


def test_bad_arguments_are_named():
    q, k, v = inputs(8)
    ids = jnp.asarray(np.zeros((2, 4, 8, 1), np.int32))
    with pytest.raises(ValueError, match="block_size=0 must be at least 1"):
        block_prefill(q, k, v, ids, 0)
    with pytest.raises(ValueError, match="block_ids has shape"):
        inspect.unwrap(block_prefill)(q, k, v, ids[:, :, :4], 4)
    with pytest.raises(ValueError, match=r"dilation \(or -1: no strided keys\)=0"):
        strided_prefill(q, k, v, 0, 0, 0)
    with pytest.raises(ValueError, match="local=-1 must be at least 0"):
        strided_prefill(q, k, v, 4, -1, 0)
    with pytest.raises(ValueError, match="lengths has shape"):
        inspect.unwrap(window_scores)(q, k, jnp.ones(3, jnp.int32))


@pytest.mark.parametrize("operation", [dense_prefill, block_prefill, strided_prefill])
def test_float32_stays_float32_on_devices_with_narrower_products(operation):
    """In XLA's implementations and their gradients, as far as the program says so."""
    q, k, v = inputs(32)
    more = {
        "dense_prefill": (),
        "block_prefill": (jnp.asarray(random_blocks(32, 8, 2)), 8),
        "strided_prefill": (4, 2, 1),
    }[operation.__name__]

    def loss(*args):
        return operation(*args, *more, "xla").sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 4
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products
