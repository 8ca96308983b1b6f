import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import (
    append,
    dense_decode,
    page_bounds,
    page_scores,
    paged_decode,
    quest_decode,
)
from ratjax_kernels.selection import select_pages
from tests.kernels import oracle

IMPLEMENTATIONS = ("reference", "xla")
# Nothing but rounding differs by dtype: bfloat16 once.
KINDS = [(4, 4, jnp.float32), (6, 2, jnp.float32), (6, 2, jnp.bfloat16)]


def inputs(slots, heads=4, kv_heads=2, dtype=jnp.float32, batch=3, channels=8, seed=0):
    rng = np.random.default_rng(seed)
    q = oracle.normal(rng, (batch, 1, heads, channels), dtype)
    k, v = (
        oracle.normal(rng, (batch, slots, kv_heads, channels), dtype, scale) for scale in (2, 1)
    )
    lengths = jnp.asarray([slots, max(slots // 2, 1), 1], jnp.int32)
    return q, k, v, lengths


def poison(x, lengths):
    return oracle.poisoned(x, np.arange(x.shape[1])[None] < np.asarray(lengths)[:, None])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("heads,kv_heads,dtype", KINDS)
@pytest.mark.parametrize("slots", [1, 65])
def test_dense_decode_reads_the_filled_slots(implementation, heads, kv_heads, dtype, slots):
    q, k, v, lengths = inputs(slots, heads, kv_heads, dtype)
    want = oracle.attend(q, k, v, lambda b, t, h: range(int(lengths[b])))
    have = oracle.run(
        dense_decode,
        q,
        poison(k, lengths),
        poison(v, lengths),
        lengths,
        implementation=implementation,
    )
    assert have.dtype == dtype
    oracle.assert_attention_close(have, *want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dense_decode_reads_what_the_mask_names(implementation):
    q, k, v, lengths = inputs(33)
    mask = np.random.default_rng(1).random((3, 33)) < 0.5
    mask[1] = False
    read = [np.flatnonzero(mask[b, : int(lengths[b])]) for b in range(3)]
    want = oracle.attend(q, k, v, lambda b, t, h: read[b])
    k, v = (oracle.poisoned(poison(x, lengths), mask) for x in (k, v))
    have = oracle.run(
        dense_decode, q, k, v, lengths, implementation=implementation, mask=jnp.asarray(mask)
    )
    oracle.assert_attention_close(have, *want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_layer_of_a_stack(implementation):
    q, k, v, lengths = inputs(33)
    bounds = oracle.run(page_bounds, k, lengths, page_size=8)
    ids = np.random.default_rng(0).integers(0, 5, (3, 4, 2)).astype(np.int32)
    new = np.asarray(k)[:, :1]

    def every_operation(layer, k, v, low, high):
        settings = {"implementation": implementation, "layer": layer}
        read = (
            dense_decode(q, k, v, lengths, **settings),
            page_scores(q, low, high, **settings),
            paged_decode(q, k, v, lengths, jnp.asarray(ids), 8, **settings),
            quest_decode(q, k, v, lengths, low, high, 8, 2, **settings),
        )
        written = jnp.asarray(new), jnp.asarray(2 * new)
        return read, append(k, v, lengths - 1, *written, (low, high), 8, **settings)

    alone = [np.asarray(x) for x in (k, v, *bounds)]
    stack = [np.stack([np.full_like(x, np.nan), x]) for x in alone]
    want, want_grown = oracle.run(every_operation, None, *alone)
    have, grown = jax.tree.map(np.asarray, oracle.run(every_operation, np.int32(1), *stack))
    jax.tree.map(np.testing.assert_array_equal, have, want)
    jax.tree.map(np.testing.assert_array_equal, [x[1] for x in grown], list(want_grown))
    assert all(np.isnan(x[0]).all() for x in grown)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("forced", [(True, True), (False, False)])
def test_quest_decode_is_its_three_steps(implementation, forced):
    q, k, v, lengths = inputs(65)
    bounds = oracle.run(page_bounds, k, lengths, page_size=4)
    first, current = forced

    def three_steps(q, k, v, lengths, k_min, k_max):
        scores = page_scores(q, k_min, k_max, implementation)
        ids = select_pages(
            scores, lengths, page_size=4, pages=5, force_first=first, force_current=current
        )
        return paged_decode(q, k, v, lengths, ids, 4, implementation), ids

    have = jax.jit(lambda *x: quest_decode(*x, 4, 5, *forced, implementation))(
        q, k, v, lengths, *bounds
    )
    want = jax.jit(three_steps)(q, k, v, lengths, *bounds)
    jax.tree.map(np.testing.assert_array_equal, have, want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_append_keeps_cache_and_bounds_up_to_date(implementation, dtype):
    _, k, v, _ = inputs(10, dtype=dtype)
    lengths = np.array([0, 6, 10], np.int32)  # the last sequence is full
    bounds_of = jax.jit(functools.partial(page_bounds, page_size=4))
    new = np.asarray(k)[:, 3:4] * np.array(2, dtype)

    def append_twice(k, v, lengths, new, bounds):
        grown = append(k, v, lengths, new, -new, bounds, 4, implementation)
        return grown, append(*grown[:2], lengths, new, -new, implementation=implementation)

    grown, plain = jax.jit(append_twice)(k, v, lengths, new, bounds_of(k, lengths))
    k, v = np.array(k), np.array(v)
    for b, slot in ((0, 0), (1, 6)):
        k[b, slot], v[b, slot] = new[b, 0], -new[b, 0]
    want = (k, v, *bounds_of(k, np.minimum(lengths + 1, 10)))
    jax.tree.map(np.testing.assert_array_equal, tuple(grown), want)
    jax.tree.map(np.testing.assert_array_equal, tuple(plain), want[:2])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_cache_gives_zeros(implementation):
    q, k, _, _ = inputs(5)
    nothing = oracle.poisoned(k, np.zeros(3, bool))
    pages = np.full((3, 4, 2), -1, np.int32)

    def both(q, k, lengths, pages):
        dense = dense_decode(q, k, k, lengths, implementation)
        return dense, paged_decode(q, k, k, lengths, pages, 2, implementation)

    for out in jax.jit(both)(q, nothing, np.zeros(3, np.int32), pages):
        np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("slots,page_size", [(1, 4), (65, 16)])
def test_page_bounds_cover_the_valid_slots(implementation, dtype, slots, page_size):
    _, k, _, lengths = inputs(slots, dtype=dtype)
    k_min, k_max = oracle.run(
        page_bounds,
        poison(k, lengths),
        lengths,
        page_size=page_size,
        implementation=implementation,
    )
    k, k_min, k_max = (np.asarray(x) for x in (k, k_min, k_max))
    assert k_min.shape[1] == -(-slots // page_size)
    assert k_min.dtype == k_max.dtype == dtype
    for b, p in np.ndindex(k_min.shape[:2]):
        page = k[b, p * page_size : min((p + 1) * page_size, int(lengths[b]))]
        if len(page):
            np.testing.assert_array_equal(k_min[b, p], page.min(axis=0))
            np.testing.assert_array_equal(k_max[b, p], page.max(axis=0))
        else:
            assert (k_min[b, p] == jnp.inf).all() and (k_max[b, p] == -jnp.inf).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("heads,kv_heads,dtype", KINDS)
def test_page_scores_are_quests(implementation, heads, kv_heads, dtype):
    q, k, _, lengths = inputs(63, heads, kv_heads, dtype)
    q = np.array(q)
    q[0, 0, 0] = 0  # zero times an infinite bound must not be NaN

    def scores_and_bounds(q, k, lengths):
        bounds = page_bounds(k, lengths, 16)
        return page_scores(q, *bounds, implementation), *bounds

    have, low, high = jax.tree.map(np.asarray, jax.jit(scores_and_bounds)(q, k, lengths))
    low, high, query = (oracle.as64(x) for x in (low, high, q))
    for b, h, p in np.ndindex(have.shape):
        g = h // (heads // kv_heads)
        if p * 16 >= int(lengths[b]):
            assert have[b, h, p] == -np.inf
            continue
        products = np.maximum(query[b, 0, h] * low[b, p, g], query[b, 0, h] * high[b, p, g])
        np.testing.assert_allclose(have[b, h, p], products.sum(), rtol=1e-5, atol=1e-5)


def test_page_scores_bound_every_score_of_the_page():
    q, k, _, lengths = inputs(64, seed=5)
    score = jax.jit(lambda q, k, lengths: page_scores(q, *page_bounds(k, lengths, 8)))
    scores = np.asarray(score(q, k, lengths))
    q, k = np.asarray(q), np.asarray(k)
    dots = np.einsum("bhd,bshd->bhs", q[:, 0], np.repeat(k, 2, axis=2))
    for b, h, p in np.ndindex(scores.shape):
        page = dots[b, h, p * 8 : min((p + 1) * 8, int(lengths[b]))]
        assert not len(page) or page.max() <= scores[b, h, p] + 1e-4


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "heads,kv_heads,dtype,per_kv_head",
    [*((*kind, False) for kind in KINDS), *((*kind, True) for kind in KINDS[1:])],
)
@pytest.mark.parametrize("slots,page_size,listed", [(1, 4, 1), (65, 16, 3)])
def test_paged_decode_reads_the_listed_pages(
    implementation, heads, kv_heads, dtype, per_kv_head, slots, page_size, listed
):
    q, k, v, lengths = inputs(slots, heads, kv_heads, dtype)
    pages = -(-slots // page_size)
    rng = np.random.default_rng(3)
    lists = kv_heads if per_kv_head else heads
    # A random choice in random order, with -1 in place of the pages there are too few of.
    ids = np.stack([rng.permutation(max(pages, listed))[:listed] for _ in range(3 * lists)])
    ids = np.where(ids < pages, ids, -1).reshape(3, lists, listed).astype(np.int32)

    def rows(b, t, h):
        chosen = ids[b, h * lists // heads]
        return [s for s in range(int(lengths[b])) if s // page_size in chosen]

    want = oracle.attend(q, k, v, rows)
    read = np.zeros((3, slots, kv_heads), bool)
    for b, h in np.ndindex(3, heads):
        read[b, rows(b, 0, h), h // (heads // kv_heads)] = True
    k, v = (oracle.poisoned(x, read) for x in (k, v))
    have = oracle.run(
        paged_decode,
        q,
        k,
        v,
        lengths,
        jnp.asarray(ids),
        page_size=page_size,
        implementation=implementation,
    )
    assert have.dtype == dtype
    oracle.assert_attention_close(have, *want)


def test_all_pages_are_dense_decode():
    q, k, v, lengths = inputs(63)
    ids = np.array(np.broadcast_to(np.arange(8, dtype=np.int32), (3, 4, 8)))
    paged = oracle.run(paged_decode, q, k, v, lengths, ids, page_size=8)
    np.testing.assert_allclose(paged, oracle.run(dense_decode, q, k, v, lengths), atol=1e-6)


def test_equal_scores_share_the_weight():
    q, _, v, lengths = inputs(33)
    k = np.ones_like(v)
    have = np.asarray(oracle.run(dense_decode, q, k, v, lengths))
    for b in range(3):
        mean = np.repeat(np.asarray(v)[b, : int(lengths[b])].mean(axis=0), 2, axis=0)
        np.testing.assert_allclose(have[b, 0], mean, atol=1e-6)


def test_works_under_jit_vmap_and_scan():
    q, k, v, lengths = inputs(20)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 5, (3, 4, 1)), jnp.int32)

    def both(q, k, v, lengths, ids):
        scores = page_scores(q, *page_bounds(k, lengths, 4))
        return dense_decode(q, k, v, lengths), paged_decode(q, k, v, lengths, ids, 4), scores

    args = (q, k, v, lengths, ids)
    want = jax.jit(both)(*args)
    single = tuple(np.asarray(x)[:, None] for x in args)
    mapped = jax.jit(jax.vmap(both))(*single)
    scanned = jax.lax.scan(lambda carry, x: (carry, both(*x)), 0, single)[1]
    for have in (mapped, scanned):
        for a, b in zip(have, want, strict=True):
            np.testing.assert_allclose(np.asarray(a)[:, 0], b, atol=1e-5)


def test_bad_arguments_are_named():
    q, k, v, lengths = inputs(8)
    dense, paged = inspect.unwrap(dense_decode), inspect.unwrap(paged_decode)
    with pytest.raises(ValueError, match="v has shape"):
        dense(q, k, v[:, :4], lengths)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key/value heads"):
        dense(q, *inputs(8, kv_heads=3)[1:])
    with pytest.raises(ValueError, match="page_size=0 must be at least 1"):
        page_bounds(k, lengths, 0)
    with pytest.raises(ValueError, match=r"page_ids has shape \(3, 3, 1\)"):
        paged(q, k, v, lengths, jnp.zeros((3, 3, 1), jnp.int32), 4)
    with pytest.raises(ValueError, match=r"k has shape \(3, 8, 2, 8\)"):
        dense(q, k, v, lengths, layer=jnp.int32(0))
    with pytest.raises(ValueError, match="k_min has shape"):
        inspect.unwrap(quest_decode)(q, k, v, lengths, k, k, 4, 2)
    with pytest.raises(ValueError, match=r"bounds\[0\] has shape"):
        append(k, v, lengths, k[:, :1], v[:, :1], (k, k), 4)
    with pytest.raises(ValueError, match="choose one of"):
        dense_decode(q, k, v, lengths, "flash")
