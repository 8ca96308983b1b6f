"""The contracts of dilated, quest, moba and snapkv against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from ratjax.errors import ConfigError
from ratjax.sparsity import dense, dilated, moba, quest, snapkv
from tests.compiled import compiled

HEADS = [(4, 4), (4, 2), (4, 1)]
KINDS = [*(("float32", heads) for heads in HEADS), ("bfloat16", (4, 2))]
# float32: outputs are convex combinations of unit normals; float64 oracle, so this is
# float32's own rounding. bfloat16: outputs are rounded to 8 bits, weights as well in places.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


def states(seed, time, heads, dtype="float32", batch=2, dim=16):
    h, g = heads
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, time, n, dim)).astype(dtype)) for n in (h, g, g)]


def as_numpy(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


@pytest.mark.parametrize(("dtype", "heads"), KINDS)
@pytest.mark.parametrize("time", [1, 37, 64])
def test_dense(dtype, heads, time):
    q, k, v = states(0, time, heads, dtype)
    mask = np.broadcast_to(oracles.causal_mask(time), (2, heads[0], time, time))
    expected = oracles.masked_attention(*as_numpy(q, k, v), mask)
    out = compiled(dense.prefill, q, k, v)
    assert out.dtype == q.dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("dtype", "heads"), KINDS)
@pytest.mark.parametrize(
    ("time", "dilation", "local", "initial"),
    [(1, 4, 0, 0), (37, 4, 0, 0), (37, 4, 5, 2), (64, 16, 7, 4), (33, -1, 3, 2), (33, 1, 0, 0)],
)
def test_dilated(dtype, heads, time, dilation, local, initial):
    q, k, v = states(1, time, heads, dtype)
    rule = oracles.dilated_mask(time, dilation, local, initial)
    expected = oracles.masked_attention(
        *as_numpy(q, k, v), np.broadcast_to(rule, (2, heads[0], time, time))
    )
    settings = {"dilation": dilation, "local": local, "initial": initial}
    out = compiled(dilated.prefill, q, k, v, **settings)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=TOLERANCE[dtype])
    i, j = jnp.indices((time, time))
    np.testing.assert_array_equal(dilated.visible(i, j, dilation, local, initial), rule)
    pattern = dilated.Dilated(dilation, local, initial)
    np.testing.assert_array_equal(pattern.visible_count(jnp.arange(time)), rule.sum(1))


@pytest.mark.parametrize(("dtype", "heads"), KINDS)
@pytest.mark.parametrize("forced", [(True, True), (False, True), (False, False)])
def test_quest(dtype, heads, forced):
    slots, page_size, pages = 50, 8, 3
    lengths = np.array([50, 1, 17, 40, 24], np.int32)
    q, k, v = states(2, slots, heads, dtype, batch=len(lengths))
    q = q[:, :1]
    out, selected = compiled(
        quest.decode, q, k, v, jnp.asarray(lengths), page_size=page_size, pages=pages,
        force_first=forced[0], force_current=forced[1],
    )  # fmt: skip
    assert selected.shape == (5, heads[0], 7)
    qn, kn, vn = as_numpy(q, k, v)
    repeated = oracles.repeat_heads(kn, heads[0])
    mask = np.zeros((len(lengths), heads[0], 1, slots), bool)
    for b, h in np.ndindex(len(lengths), heads[0]):
        chosen = oracles.quest_pages(
            qn[b, 0, h], repeated[b, :, h], lengths[b], page_size, pages, *forced
        )
        assert set(np.flatnonzero(selected[b, h])) == chosen
        for page in chosen:
            mask[b, h, 0, page * page_size : min((page + 1) * page_size, lengths[b])] = True
    expected = oracles.masked_attention(qn, kn, vn, mask)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=TOLERANCE[dtype])


def test_quest_never_reads_unselected_pages_or_beyond_the_length():
    lengths = np.array([45, 20], np.int32)
    q, k, v = states(3, 48, (4, 2), batch=2)
    q = q[:, :1]
    decode = jax.jit(lambda k, v: quest.decode(q, k, v, jnp.asarray(lengths), page_size=8, pages=3))
    out, selected = decode(k, v)
    k, v = np.array(k), np.array(v)
    read = np.repeat(np.asarray(selected).reshape(2, 2, 2, 6).any(2), 8, axis=-1)
    for b in range(2):
        k[b, lengths[b] :] = np.nan
        v[b, lengths[b] :] = np.nan
        for g in range(2):
            v[b, ~read[b, g], g] = np.nan
    poisoned, again = decode(k, v)
    np.testing.assert_array_equal(again, selected)
    np.testing.assert_array_equal(poisoned, out)


@pytest.mark.parametrize(("dtype", "heads"), KINDS)
@pytest.mark.parametrize(("time", "blocks", "first"), [(61, 3, True), (64, 2, False), (5, 2, True)])
def test_moba(dtype, heads, time, blocks, first):
    q, k, v = states(4, time, heads, dtype)
    out = compiled(moba.prefill, q, k, v, block_size=8, blocks=blocks, force_first=first)
    mask = oracles.moba_mask(*as_numpy(q, k), 8, blocks, first)
    expected = oracles.masked_attention(*as_numpy(q, k, v), mask)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=TOLERANCE[dtype])


def test_moba_with_one_block_is_block_diagonal():
    q, k, v = states(5, 45, (4, 2))
    out = compiled(moba.prefill, q, k, v, block_size=8, blocks=1, force_first=False)
    i, j = np.indices((45, 45))
    mask = np.broadcast_to((j <= i) & (i // 8 == j // 8), (2, 4, 45, 45))
    np.testing.assert_allclose(out, oracles.masked_attention(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("time", [40, 45])
def test_a_budget_of_the_whole_context_is_dense(time):
    q, k, v = states(6, time, (4, 2))
    blocks = -(-time // 8)
    expected = compiled(dense.prefill, q, k, v)
    out = compiled(moba.prefill, q, k, v, block_size=8, blocks=blocks)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    lengths = jnp.full((2,), time, jnp.int32)
    out, selected = compiled(quest.decode, q[:, -1:], k, v, lengths, page_size=8, pages=blocks + 2)
    assert selected.all()
    np.testing.assert_allclose(out, expected[:, -1:], atol=1e-5)


@pytest.mark.parametrize(("dtype", "heads"), KINDS)
@pytest.mark.parametrize(("kernel_size", "pooling"), [(5, "avg"), (3, "max"), (1, "avg")])
def test_snapkv(dtype, heads, kernel_size, pooling):
    lengths = np.array([60, 41, 12, 3], np.int32)
    q, k, v = states(7, 60, heads, dtype, batch=len(lengths))
    k_kept, v_kept, positions = compiled(
        snapkv.compress, q, k, v, window=6, capacity=16, kernel_size=kernel_size, pooling=pooling,
        lengths=jnp.asarray(lengths),
    )  # fmt: skip
    assert positions.shape == (4, heads[1], 16)
    assert k_kept.dtype == k.dtype
    group = heads[0] // heads[1]
    for b, g in np.ndindex(len(lengths), heads[1]):
        kept = np.asarray(positions[b, g])
        valid = kept >= 0
        expected = oracles.snapkv_positions(
            np.asarray(q, np.float64)[b, :, g * group : (g + 1) * group],
            np.asarray(k, np.float64)[b, :, g], int(lengths[b]), 6, 16, kernel_size, pooling,
        )  # fmt: skip
        assert list(kept[valid]) == sorted(expected)
        np.testing.assert_array_equal(k_kept[b, valid, g], k[b, kept[valid], g])
        np.testing.assert_array_equal(v_kept[b, valid, g], v[b, kept[valid], g])
        assert not np.asarray(k_kept, np.float32)[b, ~valid, g].any()


def test_snapkv_ignores_what_stands_behind_a_prompt():
    lengths = jnp.array([30, 9], jnp.int32)
    q, k, v = states(8, 40, (4, 2))
    compress = jax.jit(
        lambda q, k, v: snapkv.compress(q, k, v, window=4, capacity=12, lengths=lengths)
    )
    clean = compress(q, k, v)
    behind = (np.arange(40) >= np.asarray(lengths)[:, None])[..., None, None]
    poisoned = compress(*(jnp.where(behind, jnp.nan, x) for x in (q, k, v)))
    for a, b in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_scores_choose_lower_indices():
    q, k, v = states(10, 48, (2, 2))
    k = jnp.ones_like(k)
    lengths = jnp.array([48, 48], jnp.int32)
    _, selected = compiled(quest.decode, q[:, -1:], k, v, lengths, page_size=8, pages=4)
    assert selected[..., [0, 1, 2, 5]].all()
    ids = compiled(moba.MoBA(8, 4).select, q, k)
    np.testing.assert_array_equal(ids[:, :, -1], np.broadcast_to([0, 1, 2, 5], (2, 2, 4)))
    # Constant keys: votes fall only through the causal window; without one, none differ.
    _, _, positions = compiled(snapkv.compress, q, k, v, window=1, capacity=5, kernel_size=1)
    np.testing.assert_array_equal(positions, np.broadcast_to([0, 1, 2, 3, 47], (2, 2, 5)))


def test_gradients_flow_through_sparse_prefill():
    q, k, v = states(11, 40, (4, 2), batch=1)
    ids_mask = oracles.moba_mask(*as_numpy(q, k), 8, 3)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / 4
        weights = jax.nn.softmax(jnp.where(ids_mask, scores, -jnp.inf))
        return jnp.sum(jnp.sin(jnp.einsum("bhts,bshd->bthd", weights, v)))

    def sparse(q, k, v):
        return jnp.sum(jnp.sin(moba.prefill(q, k, v, block_size=8, blocks=3)))

    expected = compiled(jax.grad(plain, (0, 1, 2)), q, k, v)
    for a, b in zip(compiled(jax.grad(sparse, (0, 1, 2)), q, k, v), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: quest.Quest(8, 1), "quest.pages"),
        (lambda: quest.Quest(0, 4), "quest.page_size"),
        (lambda: moba.MoBA(8, 1), "moba.blocks"),
        (lambda: snapkv.SnapKV(window=16, capacity=8), "snapkv.capacity"),
        (lambda: snapkv.SnapKV(8, 16, kernel_size=4), "snapkv.kernel_size"),
        (lambda: snapkv.SnapKV(8, 16, pooling="mean"), "snapkv.pooling"),
        (lambda: dilated.Dilated(0), "dilated.dilation"),
        (lambda: dilated.Dilated(4, local=-1), "dilated.local"),
        (lambda: quest.Quest(8, 4, selector="best"), "quest.selector"),
    ],
)
def test_bad_settings_name_the_field(build, field):
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        build()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dilation", [1, 3, 8])
def test_quest_with_strided_keys_elsewhere(heads, dilation):
    time, lengths = 61, np.array([61, 30])
    q, k, v = states(7, time, heads)
    q = q[:, :1]
    pattern = quest.Quest(8, 3, dilation=dilation)
    cache = compiled(pattern.compress, q, k, v, jnp.asarray(lengths), new_tokens=5)
    out, reads = compiled(pattern.decode, q, cache)
    repeated = oracles.repeat_heads(np.asarray(k), heads[0])
    mask = np.zeros((2, heads[0], 1, time), bool)
    for b, h in np.ndindex(2, heads[0]):
        pages = oracles.quest_pages(np.asarray(q)[b, 0, h], repeated[b, :, h], lengths[b], 8, 3)
        slot = np.arange(time)
        read = np.isin(slot // 8, list(pages)) | ((slot + 1) % dilation == 0)
        mask[b, h, 0] = read & (slot < lengths[b])
    expected = oracles.masked_attention(*as_numpy(q, k, v), mask)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=1e-5)
    np.testing.assert_allclose(reads.read, mask.sum((1, 2, 3)) / heads[0])
    holds = jax.jit(pattern.holds)
    for position in (7, 20, 29):
        held = holds(q, cache, np.full(2, position, np.int32))
        np.testing.assert_array_equal(held, mask[:, :, 0, position])
