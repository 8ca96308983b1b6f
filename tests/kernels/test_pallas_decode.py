"""Decode's TPU kernels: in Pallas' TPU interpreter, and what they refuse."""

import functools

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
from ratjax_kernels.dense_decode import pallas_tpu as dense_tpu
from ratjax_kernels.paged_decode import pallas_bounds, pallas_kernels, pallas_select
from ratjax_kernels.paged_decode import pallas_tpu as paged_tpu
from ratjax_kernels.selection import select_pages
from tests.kernels import oracle
from tests.kernels.devices import assert_rounded_like
from tests.kernels.pallas_devices import interpreted

# The interpreter is compiled anew for every shape.
pytestmark = pytest.mark.slow

TPU, XLA, REFERENCE = ({"implementation": x} for x in ("pallas_tpu", "xla", "reference"))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles in short caches."""
    monkeypatch.setattr(paged_tpu, "_SLOTS", 32)
    for module in (paged_tpu, pallas_kernels):
        monkeypatch.setattr(module, "LANES", 4)  # lists over several registers
    monkeypatch.setattr(dense_tpu, "_SLOTS", 16)
    monkeypatch.setattr(dense_tpu, "_HEADS", 2)
    monkeypatch.setattr(pallas_bounds, "_SLOTS", 16)
    monkeypatch.setattr(pallas_bounds, "_PAGES", 8)
    monkeypatch.setattr(pallas_bounds, "_HEADS", 2)


def inputs(slots, heads, kv_heads, channels, dtype=jnp.float32, batch=3):
    rng = np.random.default_rng(slots)
    q = oracle.normal(rng, (batch, 1, heads, channels), dtype)
    k, v = (
        oracle.normal(rng, (batch, slots, kv_heads, channels), dtype, scale) for scale in (2, 1)
    )
    lengths = jnp.asarray([slots, slots // 2 + 1, 0][:batch], jnp.int32)
    return q, k, v, lengths


def filled(k, lengths):
    return np.arange(k.shape[1]) < np.asarray(lengths)[:, None]


def poison(lengths, *arrays):
    return [oracle.poisoned(x, filled(x, lengths)) for x in arrays]


def layered(*arrays):
    """Stacks whose layer 1 holds the arrays, and layer 0 nothing that may be read."""
    return [jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in arrays]


def wide(*arrays):
    return [x.astype(jnp.float32) for x in arrays]


# Lists a query head or a key/value head, pages that are whole registers and that are not, one
# page that is longer than the cache, one sequence for two cores; some pages are listed twice, some
# entries list none.
@pytest.mark.parametrize(
    "batch,slots,heads,kv_heads,lists,channels,page_size,listed,dtype",
    [
        (3, 64, 2, 2, 2, 128, 16, 5, jnp.float32),
        (3, 96, 6, 2, 6, 24, 16, 3, jnp.bfloat16),
        (1, 80, 4, 2, 2, 40, 5, 7, jnp.float32),
        (3, 13, 2, 1, 2, 16, 16, 2, jnp.float32),
    ],
)
def test_paged_decode_reads_the_listed_pages(
    batch, slots, heads, kv_heads, lists, channels, page_size, listed, dtype
):
    q, k, v, lengths = inputs(slots, heads, kv_heads, channels, dtype, batch)
    pages = -(-slots // page_size)
    ids = np.random.default_rng(0).integers(-1, pages, (batch, lists, listed)).astype(np.int32)
    ids[0, 0] = -1  # nothing at all
    ids_given = lengths, jnp.asarray(ids)
    settings = {"page_size": page_size}
    want = oracle.run(paged_decode, *wide(q, k, v), *ids_given, **settings, **REFERENCE)
    plain = oracle.run(paged_decode, q, k, v, *ids_given, **settings, **XLA)
    page = np.arange(slots) // page_size
    per_head = np.repeat(ids, heads // lists, axis=1)
    grouped = per_head.reshape(batch, kv_heads, -1)
    read = (grouped[:, None] == page[None, :, None, None]).any(axis=-1)  # [B, S, G]
    read &= filled(k, lengths)[:, :, None]
    k, v = layered(*(oracle.poisoned(x, read) for x in (k, v)))
    run = functools.partial(paged_decode, page_size=page_size, layer=jnp.int32(1), **TPU)
    have = interpreted(run, q, k, v, *ids_given)
    assert have.dtype == dtype
    assert_rounded_like(have, plain, want)
    assert not np.asarray(have[0, 0, 0]).any()
    assert not np.asarray(have[2:]).any()  # an empty cache, all of it NaN


def test_quest_decode_is_its_three_steps():
    rng = np.random.default_rng(0)
    # Products of small whole numbers are exact in any order, and many scores are equal.
    q, k, v = (
        jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)
        for shape in ((3, 1, 4, 8), (3, 64, 2, 8), (3, 64, 2, 8))
    )
    lengths = jnp.asarray([61, 30, 0], jnp.int32)
    k, v = poison(lengths, k, v)
    bounds = oracle.run(page_bounds, k, lengths, page_size=8, **REFERENCE)
    run = functools.partial(quest_decode, page_size=8, pages=3, **TPU)
    have, ids = interpreted(run, q, k, v, lengths, *bounds)
    scores = oracle.run(page_scores, q, *bounds, **REFERENCE)
    np.testing.assert_array_equal(ids, select_pages(scores, lengths, page_size=8, pages=3))
    assert (np.diff(np.sort(np.asarray(scores)[0, 0, :7])) == 0).any()  # there are ties
    clean = jnp.nan_to_num(k), jnp.nan_to_num(v)
    want = oracle.run(paged_decode, q, *clean, lengths, ids, page_size=8, **REFERENCE)
    np.testing.assert_allclose(have, want, atol=1e-6)


@pytest.mark.parametrize("forced,pages", [((True, True), 40), ((False, False), 3)])
def test_choice_of_pages(forced, pages):
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (4, 5, 250)).astype(np.float32)  # many ties
    scores[1, 1] = -0.0
    scores[1, 1, 3] = 0.0
    scores[0, 2, 5:9] = [np.inf, 3.4e38, np.finfo(np.float32).max, -np.inf]
    lengths = jnp.asarray([4000, 1300, 17, 0], jnp.int32)

    def choose(scores, lengths):
        return pallas_select.select(scores, lengths, 16, pages, *forced)

    have = interpreted(choose, jnp.asarray(scores), lengths)
    first, current = forced
    want = select_pages(
        jnp.asarray(scores), lengths, page_size=16, pages=pages,
        force_first=first, force_current=current,
    )  # fmt: skip
    np.testing.assert_array_equal(have, want)


def test_choice_of_pages_for_some_heads_at_a_time(monkeypatch):
    monkeypatch.setattr(pallas_select, "_VALUES", 1500)  # 16 heads would take 24 MiB
    scores = np.random.default_rng(0).normal(size=(2, 16, 250)).astype(np.float32)
    lengths = jnp.asarray([4000, 1300], jnp.int32)
    assert pallas_select.kernel(scores, 16, 7, True, True).grid == (2, 2)
    choose = functools.partial(
        pallas_select.select, page_size=16, pages=7, force_first=True, force_current=True
    )
    have = interpreted(choose, jnp.asarray(scores), lengths)
    want = select_pages(jnp.asarray(scores), lengths, page_size=16, pages=7)
    np.testing.assert_array_equal(have, want)


def test_lengths_past_the_end_read_to_the_end():
    """As `append` drops what a full sequence is given, its length may still be counted on."""
    q, k, v, _ = inputs(40, 4, 2, 16, batch=2)
    past, full = jnp.asarray([47, 1000], jnp.int32), jnp.asarray([40, 40], jnp.int32)
    have = interpreted(functools.partial(dense_decode, **TPU), q, k, v, past)
    want = oracle.run(dense_decode, q, k, v, full, **REFERENCE)
    np.testing.assert_allclose(have, want, atol=1e-5)
    ids = jnp.asarray([[[0, 2, -1]] * 4, [[1, 2, 2]] * 4], jnp.int32)
    run = functools.partial(paged_decode, page_size=16, **TPU)
    want = oracle.run(paged_decode, q, k, v, full, ids, page_size=16, **REFERENCE)
    np.testing.assert_allclose(interpreted(run, q, k, v, past, ids), want, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_page_bounds_and_scores(dtype):
    q, k, _, lengths = inputs(150, 6, 2, 24, dtype)
    want = oracle.run(page_bounds, k, lengths, page_size=16, **REFERENCE)
    (k,) = poison(lengths, k)
    bounds = interpreted(functools.partial(page_bounds, page_size=16, **TPU), k, lengths)
    jax.tree.map(np.testing.assert_array_equal, bounds, want)
    assert bounds[0].dtype == dtype
    q = q.at[0, 0, 0].set(0)  # zero times an infinite bound must not be NaN
    run = functools.partial(page_scores, layer=jnp.int32(1), **TPU)
    have = np.asarray(interpreted(run, q, *layered(*bounds)))
    want = np.asarray(oracle.run(page_scores, q, *bounds, **REFERENCE))
    np.testing.assert_array_equal(np.isneginf(have), np.isneginf(want))
    # float32 sums of 24 products, in another order.
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "slots,heads,kv_heads,channels,dtype,masked",
    [(33, 2, 2, 128, jnp.float32, False), (45, 6, 2, 24, jnp.bfloat16, True)],
)
def test_dense_decode_reads_the_filled_slots(slots, heads, kv_heads, channels, dtype, masked):
    q, k, v, lengths = inputs(slots, heads, kv_heads, channels, dtype)
    mask = np.random.default_rng(1).random((3, slots)) < 0.5
    mask[1] = False
    keep = {"mask": jnp.asarray(mask)} if masked else {}
    want = oracle.run(dense_decode, *wide(q, k, v), lengths, **REFERENCE, **keep)
    plain = oracle.run(dense_decode, q, k, v, lengths, **XLA, **keep)
    read = filled(k, lengths) & (mask | (not masked))
    k, v = layered(*(oracle.poisoned(x, read) for x in (k, v)))
    run = functools.partial(dense_decode, layer=jnp.int32(1), **TPU, **keep)
    have = interpreted(run, q, k, v, lengths)
    assert have.dtype == dtype
    assert_rounded_like(have, plain, want)
    assert not np.asarray(have[2:]).any()  # an empty cache, all of it NaN


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_append_keeps_cache_and_bounds_up_to_date(dtype):
    # Whole registers of slots and pages: the interpreter cannot write parts of them in place.
    slots, page_size = 32, 2
    _, k, v, _ = inputs(slots, 2, 2, 24, dtype, batch=4)
    lengths = jnp.asarray([0, 17, slots - 1, slots], jnp.int32)  # the last sequence is full
    k, v = poison(lengths, k, v)
    bounds = oracle.run(page_bounds, k, lengths, page_size=page_size, **REFERENCE)
    new = 2 * v[3:, :4].swapaxes(0, 1)
    stacks = layered(k, v, *bounds)

    def run(implementation, k, v, low, high):
        settings = {"implementation": implementation, "layer": jnp.int32(1)}
        paged = append(k, v, lengths, new, -new, (low, high), page_size, **settings)
        return paged, append(k, v, lengths, -new, new, **settings)

    have = interpreted(functools.partial(run, "pallas_tpu"), *stacks)
    for a, b in zip(
        *map(jax.tree.leaves, (have, jax.jit(functools.partial(run, "reference"))(*stacks))),
        strict=True,
    ):
        assert a.dtype == dtype
        np.testing.assert_array_equal(*wide(a, b))


def test_work_under_jit_and_vmap():
    q, k, v, lengths = inputs(32, 4, 2, 8, batch=2)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 4, 2)), jnp.int32)

    def all_of(implementation, q, k, v, lengths, ids):
        bounds = page_bounds(k, lengths, 8, implementation)
        grown = append(k, v, lengths - 1, k[:, 1:2], v[:, :1], bounds, 8, implementation)
        return (
            grown,
            page_scores(q, *bounds, implementation),
            paged_decode(q, k, v, lengths, ids, 8, implementation),
            dense_decode(q, k, v, lengths, implementation),
        )

    args = (q, k, v, lengths, ids)
    mapped = jax.jit(jax.vmap(functools.partial(all_of, "pallas_tpu")))
    have = interpreted(mapped, *(x[:, None] for x in args))
    want = jax.jit(functools.partial(all_of, "reference"))(*args)
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[:, 0], b, atol=1e-5)


def abstract(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    "slots,page_size,listed,dtype,problem",
    [
        (4100, 64, 16, jnp.bfloat16, "serves caches of a multiple of 16 slots, not 4100"),
        (4096, 64, 8192, jnp.bfloat16, "lists 262144 pages, of 131072 in scalar memory"),
        (32768, 16384, 1, jnp.bfloat16, "of VMEM for its blocks, of 16"),
        (4096, 64, 16, jnp.float16, "serves float32 and bfloat16, not float16"),
    ],
)
def test_paged_decode_names_its_limits(slots, page_size, listed, dtype, problem):
    cache = abstract(1, slots, 32, 128, dtype=dtype)
    with pytest.raises(ValueError, match=f"paged_decode: implementation='pallas_tpu' .*{problem}"):
        jax.eval_shape(
            functools.partial(paged_decode, page_size=page_size, **TPU),
            abstract(1, 1, 32, 128, dtype=dtype), cache, cache, abstract(1, dtype=jnp.int32),
            abstract(1, 32, listed, dtype=jnp.int32),
        )  # fmt: skip


def test_what_cannot_be_served_is_left_to_xla(caplog):
    """Within `prefer` the next best implementation takes over, as it does on a TPU."""
    from ratjax_kernels import prefer

    q, k, v, lengths = inputs(33, 2, 2, 8)
    ids = jnp.zeros((3, 2, 1), jnp.int32)
    with prefer("pallas_tpu"):
        have = paged_decode(q, k, v, lengths, ids, 8)
    np.testing.assert_array_equal(have, paged_decode(q, k, v, lengths, ids, 8, "xla"))
    assert "pallas_tpu serves caches of a multiple of 8 slots, not 33" in caplog.text


def test_page_bounds_name_their_limits():
    for page_size, problem in ((24, "multiples of 16, not 24"), (4096, "of VMEM for its blocks")):
        with pytest.raises(ValueError, match=problem):
            jax.eval_shape(
                functools.partial(page_bounds, page_size=page_size, **TPU),
                abstract(1, 2**20, 8, 128), abstract(1, dtype=jnp.int32),
            )  # fmt: skip
