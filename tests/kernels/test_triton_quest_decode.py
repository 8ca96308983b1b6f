"""Quest's decode step as Triton kernels, on a GPU or in Triton's interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax_kernels import page_bounds, page_scores, paged_decode, quest_decode
from ratjax_kernels.selection import select_pages
from tests.kernels import devices, oracle

# slots, channels, query heads, key/value heads, page size, pages kept
SHAPES = [(1, 16, 2, 2, 4, 2), (37, 24, 4, 2, 4, 3)]
if devices.ON_GPU:
    SHAPES += [
        (63, 40, 6, 2, 16, 9),
        (4097, 128, 4, 4, 64, 5),
        (4097, 128, 8, 2, 16, 70),
        (33000, 64, 2, 1, 16, 300),
        (700, 256, 3, 3, 100, 2),
    ]


@pytest.fixture(autouse=True)
def short_splits(monkeypatch):
    """Several splits on small shapes."""
    from ratjax_kernels.paged_decode import triton

    monkeypatch.setattr(triton, "_LEAST_SHARE", 8)


def inputs(shape, dtype=jnp.float32, batch=3):
    slots, channels, heads, kv_heads, page_size, _ = shape
    rng = np.random.default_rng(slots)
    q = oracle.normal(rng, (batch, 1, heads, channels), dtype)
    k, v = (
        oracle.normal(rng, (batch, slots, kv_heads, channels), dtype, scale) for scale in (2, 1)
    )
    lengths = jnp.asarray([slots, max(slots // 2, 1), 1][:batch], jnp.int32)
    filled = np.arange(slots)[None] < np.asarray(lengths)[:, None]
    k, v = (oracle.poisoned(x, filled) for x in (k, v))
    return q, k, v, lengths, page_bounds(k, lengths, page_size)


def wide(*arrays):
    return [jnp.nan_to_num(x.astype(jnp.float32)) for x in arrays]


@devices.runs_triton
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_is_score_choose_attend(shape, dtype):
    page_size, pages = shape[4:]
    q, k, v, lengths, bounds = inputs(shape, dtype)
    run = functools.partial(quest_decode, implementation="triton")
    have, ids = run(q, k, v, lengths, *bounds, page_size, pages)
    scores = page_scores(q, *bounds, "triton")
    plain = page_scores(q, *bounds, "reference")
    np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(plain))
    np.testing.assert_allclose(scores, plain, rtol=1e-5, atol=1e-4)
    # Of nearly equal scores either may win: the choice is compared on the same scores.
    want = select_pages(scores, lengths, page_size=page_size, pages=pages)
    np.testing.assert_array_equal(ids, want)
    exact = paged_decode(*wide(q, k, v), lengths, ids, page_size, "reference")
    rounded = paged_decode(q, k, v, lengths, ids, page_size, "xla")
    devices.assert_rounded_like(have, rounded, exact)
    again, same = run(q, k, v, lengths, *bounds, page_size, pages)
    np.testing.assert_array_equal(again, have)
    np.testing.assert_array_equal(same, ids)


@devices.runs_triton
@pytest.mark.parametrize("forced", [(True, True), (False, True), (True, False), (False, False)])
def test_ties_go_to_lower_pages(forced):
    slots, page_size, pages = 39, 2, 6
    rng = np.random.default_rng(0)
    # Products of small whole numbers are exact in any order, and many are equal.
    q, k, v = (
        jnp.asarray(rng.integers(-1, 2, shape), jnp.float32)
        for shape in [(3, 1, 4, 2), (3, slots, 2, 2), (3, slots, 2, 2)]
    )
    q = q.at[1].set(0)  # every page of this row scores zero
    lengths = jnp.asarray([39, 21, 7], jnp.int32)
    bounds = page_bounds(k, lengths, page_size)
    args = (q, k, v, lengths, *bounds, page_size, pages, *forced)
    have, ids = quest_decode(*args, implementation="triton")
    want, expected = quest_decode(*args, implementation="reference")
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(have, want, atol=1e-6)


@devices.runs_triton
@pytest.mark.filterwarnings("ignore:overflow")  # which is what the interpreter says of it
@pytest.mark.filterwarnings("ignore:invalid value")
def test_infinite_scores_neither_force_nor_exclude():
    k = jnp.ones((1, 24, 1, 16), jnp.float32)
    k = k.at[0, 4:8].set(3e38).at[0, 12:16].set(-3e38)
    q = jnp.ones((1, 1, 1, 16), jnp.float32)
    lengths = jnp.asarray([24], jnp.int32)
    args = (q, k, k, lengths, *page_bounds(k, lengths, 4), 4, 3)
    _, ids = quest_decode(*args, implementation="triton")
    np.testing.assert_array_equal(ids, [[[0, 1, 5]]])
    _, ids = quest_decode(*args[:-1], 6, implementation="triton")
    np.testing.assert_array_equal(ids, [[[0, 1, 2, 3, 4, 5]]])


@devices.runs_triton
@pytest.mark.parametrize("per_kv_head", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reads_only_listed_pages(shape, dtype, per_kv_head):
    slots, _, heads, kv_heads, page_size, listed = shape
    q, k, v, lengths, _ = inputs(shape, dtype)
    lists = kv_heads if per_kv_head else heads
    count = max(-(-slots // page_size), listed)
    rng = np.random.default_rng(3)
    ids = np.stack([rng.permutation(count)[:listed] for _ in range(3 * lists)])
    ids = ids.reshape(3, lists, listed).astype(np.int32)
    ids[ids * page_size >= slots] = -1
    ids[:, :, -1] = ids[:, :, 0]  # listed twice, counted twice
    page = np.arange(slots) // page_size
    read = (page == ids[..., None]).any(2).reshape(3, kv_heads, -1, slots).any(2)
    poison = [oracle.poisoned(x, np.moveaxis(read, 1, 2)) for x in (k, v)]
    ids = jnp.asarray(ids)
    want = paged_decode(*wide(q, k, v), lengths, ids, page_size, "reference")
    plain = paged_decode(q, *wide(k, v), lengths, ids, page_size, "xla")
    have = paged_decode(q, *poison, lengths, ids, page_size, "triton")
    devices.assert_rounded_like(have, plain, want)
    np.testing.assert_array_equal(paged_decode(q, *poison, lengths, ids, page_size, "triton"), have)


@devices.runs_triton
def test_layers_vmap_and_scan():
    shape = (21, 16, 4, 2, 4, 3)
    q, k, v, lengths, bounds = inputs(shape, batch=2)
    arrays = [jnp.stack([x, -x]) for x in (k, v)]
    arrays += [jnp.stack([a, b]) for a, b in zip(bounds, page_bounds(-k, lengths, 4), strict=True)]
    layers = jnp.arange(2, dtype=jnp.int32)
    step = functools.partial(quest_decode, page_size=4, pages=3, implementation="triton")

    def stacked(layer):
        return step(q, *arrays[:2], lengths, *arrays[2:], layer=layer)

    def alone(k, v, low, high):
        return step(q, k, v, lengths, low, high)

    want = [alone(*(a[i] for a in arrays)) for i in (0, 1)]
    scanned = jax.lax.scan(lambda c, i: (c, stacked(i)), 0, layers)[1]
    for have in (scanned, jax.vmap(stacked)(layers), jax.vmap(alone)(*arrays)):
        for part in (0, 1):
            np.testing.assert_array_equal(have[part], [w[part] for w in want])


@devices.compiles_triton
@pytest.mark.parametrize("kv_heads", [32, 8])
@pytest.mark.parametrize("batch,slots", [(16, 32768), (4, 131072), (1, 32768)])
@pytest.mark.parametrize("page_size", [64, 16])
def test_compiles_at_production_shapes(kv_heads, batch, slots, page_size, capability, capsys):
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    cache = array(batch, slots, kv_heads, 128)
    bounds = array(batch, slots // page_size, kv_heads, 128)

    def step(q, k, v, lengths, low, high):
        pages = slots // page_size // 16
        return quest_decode(q, k, v, lengths, low, high, page_size, pages, implementation="triton")

    used = devices.check_compiles(
        capsys, capability, step, array(batch, 1, 32, 128), cache, cache,
        array(batch, dtype=jnp.int32), bounds, bounds,
    )  # fmt: skip
    assert not any(usage.spilled for _, usage in used)
