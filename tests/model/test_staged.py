"""One prefill, many answers: the same as `generate` under every pattern, in one cache's storage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.model import generation, staged
from ratjax.sparsity import dense, dilated, moba, quest, snapkv
from tests.model.test_generation import NEW, PROMPTS, decoder, sequences

FEW = (dense.Dense(), quest.Quest(8, 3), snapkv.SnapKV(6, 12))
SHARING = (
    *FEW,
    quest.Quest(4, 3, selector="random"),
    snapkv.SnapKV(4, 16, pooling="max"),
    snapkv.SnapKV(6, 12, selector="random"),
)
OTHERS = (moba.MoBA(8, 3), moba.MoBA(8, 3, selector="random"), dilated.Dilated(4, 2, 1))
BATCH = 4
LENGTHS = np.array([*PROMPTS, 24], np.int32)
WIDTH = generation.bucket(int(LENGTHS.max()))
SEED = 5


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def tokens(model):
    drawn = sequences(model.config.vocab_size)
    drawn = np.concatenate([drawn, drawn[:1]])[:, :WIDTH]
    return np.where(np.arange(WIDTH) < LENGTHS[:, None], drawn, 0).astype(np.int32)


def read(model, tokens, patterns, rows, storage=None):
    keys = generation.prompt_keys(np.arange(BATCH), SEED)
    pattern = staged.prefill_pattern(patterns)
    return staged.prefill(
        model, jnp.asarray(tokens), jnp.asarray(LENGTHS), keys, pattern, NEW, rows, storage
    )


def answer(model, prefilled, pattern, stop=-1):
    keys = generation.prompt_keys(np.arange(BATCH), SEED)
    return staged.answer(model, prefilled, keys, jnp.int32(stop), pattern, NEW)


def expected_of(model, tokens, pattern, **options):
    return generation.generate(
        model, tokens, LENGTHS, NEW, pattern, seed=SEED, width=WIDTH, **options
    )


def same(found, prefilled, want):
    tokens, reads, _ = found
    np.testing.assert_array_equal(tokens, want.tokens)
    for have, wanted in ((reads, want.decode), (prefilled.reads, want.prefill)):
        np.testing.assert_array_equal(have.read, wanted.read)
        np.testing.assert_array_equal(have.visible, wanted.visible)


@pytest.mark.parametrize(
    ("patterns", "rows"),
    [(FEW, 2), *(pytest.param(SHARING, rows, marks=pytest.mark.slow) for rows in (BATCH, 2))],
    ids=["few", "at-once", "two-by-two"],
)
def test_one_prefill_serves_every_pattern_in_any_order(model, tokens, patterns, rows):
    prefilled = read(model, tokens, patterns, rows)
    # Twice round, so that each also follows those that wrote behind the prompts after it.
    for pattern in (*patterns, *patterns[::-1]):
        found = answer(model, prefilled, pattern)
        same(found, prefilled, expected_of(model, tokens, pattern))
        prefilled = found[2]


@pytest.mark.parametrize(
    "pattern",
    [OTHERS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS[1:])],
    ids=str,
)
def test_patterns_with_a_prefill_of_their_own(model, tokens, pattern):
    prefilled = read(model, tokens, [pattern], 2)
    want = expected_of(model, tokens, pattern)
    same(answer(model, prefilled, pattern), prefilled, want)
    stop = int(want.tokens[0, 3])
    prefilled = read(model, tokens, [pattern], 2)
    same(
        answer(model, prefilled, pattern, stop),
        prefilled,
        expected_of(model, tokens, pattern, stop_token=stop),
    )


def test_a_mixture_has_no_common_prefill():
    assert staged.prefill_pattern(SHARING).window == 6
    assert staged.prefill_pattern(FEW[:2]) == dense.Dense()
    with pytest.raises(ValueError, match="no prefill"):
        staged.prefill_pattern([dense.Dense(), moba.MoBA(8, 3)])


def test_the_cache_stays_where_it_is(model, tokens):
    prefilled = read(model, tokens, FEW, 2)
    where = prefilled.cache.k.unsafe_buffer_pointer()
    for pattern in FEW:
        given = prefilled.cache
        *_, prefilled = answer(model, prefilled, pattern)
        assert given.k.is_deleted()
        assert prefilled.cache.k.unsafe_buffer_pointer() == where, pattern
    again = read(model, tokens, FEW, 2, prefilled.cache)
    assert again.cache.k.unsafe_buffer_pointer() == where
    # MoBA decodes as dense: another prefill, the same storage and the same program.
    compiled = staged._answer._cache_size()
    own = read(model, tokens, [moba.MoBA(8, 3)], 2, again.cache)
    assert own.cache.k.unsafe_buffer_pointer() == where
    answer(model, own, moba.MoBA(8, 3))
    assert staged._answer._cache_size() == compiled


def test_storage_of_another_shape_is_freed(model, tokens):
    old = read(model, tokens[:, :40], [dense.Dense()], 2).cache
    read(model, tokens, [dense.Dense()], 2, old)
    assert old.k.is_deleted()


def test_rows_must_divide_the_batch(model, tokens):
    with pytest.raises(ValueError, match="rows=3"):
        read(model, tokens, SHARING, 3)


PAGES_READ = []


class Recording(quest.Quest):
    """Quest that notes the pages that every decode step read in every layer."""

    def read(self, *args):
        out, ids = super().read(*args)
        PAGES_READ.append(np.asarray(ids))
        return out, ids


def test_hits_are_those_of_the_pages_that_were_read(model, tokens):
    steps = 4
    answers = sequences(model.config.vocab_size)[:, -steps:]
    answers = jnp.asarray(np.concatenate([answers, answers[:1]]))
    # The prompts hold 37, 16, 5 and 24 tokens; what the first token needs does not count.
    needed = jnp.array([[9, 3, 3, 3], [9, 2, 9, -1], [-1, -1, 4, -1], [9, 9, 22, 10]], jnp.int32)
    pattern = quest.Quest(4, 3)
    prefilled = read(model, tokens, [pattern], 2)
    keys = generation.prompt_keys(np.arange(BATCH), SEED)
    hits, prefilled = staged.watch(model, prefilled, keys, answers, needed, pattern, NEW)
    assert hits.shape == (2, BATCH, 4)

    PAGES_READ.clear()
    lengths = jnp.asarray(LENGTHS)
    _, state, _ = model.prefill(jnp.asarray(tokens), lengths, pattern, NEW, keys)
    with jax.disable_jit():
        for step in range(steps - 1):
            recording = Recording(4, 3)
            _, state, _ = model.decode(answers[:, step : step + 1], state, recording, keys)
    ids = np.stack(PAGES_READ).reshape(steps - 1, 2, BATCH, 4, 3)
    wanted = np.asarray(needed)[:, 1:].T[:, None, :, None, None]
    expected = ((ids == wanted // 4).any(-1) | (wanted < 0)[..., 0]).all(0)
    np.testing.assert_array_equal(hits, expected)
    assert 0 < expected.mean() < 1
    same(answer(model, prefilled, pattern), prefilled, expected_of(model, tokens, pattern))


def test_hits_of_what_was_kept(model, tokens):
    pattern = snapkv.SnapKV(6, 12)
    prefilled = read(model, tokens, [pattern], 2)
    keys = generation.prompt_keys(np.arange(BATCH), SEED)
    cache = pattern.adopt(prefilled.cache, prefilled.queries, NEW, keys)
    kept = np.asarray(cache.positions)  # [L, B, G, C]
    answers = jnp.ones((BATCH, 3), jnp.int32)
    found = []
    for position in range(37):
        needed = jnp.full((BATCH, 3), position, jnp.int32).at[:, 0].set(0)
        hits, prefilled = staged.watch(model, prefilled, keys, answers, needed, pattern, NEW)
        held = (kept == position).any(-1).repeat(2, axis=-1)  # two query heads read each
        np.testing.assert_array_equal(hits, held)
        found.append(held)
    assert (np.sum(found, axis=0)[:, 0] == 12).all()


@pytest.mark.parametrize("selector", ["original", pytest.param("random", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [quest.Quest, snapkv.SnapKV])
def test_selections_are_steered(model, tokens, kind, selector):
    # Three pages of eight (the first and the newest forced), or twelve tokens (the last six).
    sizes = (8, 3) if kind is quest.Quest else (6, 12)
    answers = jnp.ones((BATCH, 3), jnp.int32)
    # Of the longest prompt tokens 20 and 21, in one page; of the others none.
    golden = jnp.full((BATCH, 3), -1, jnp.int32).at[0].set(jnp.array([20, 20, 21]))
    keys = generation.prompt_keys(np.arange(BATCH), SEED)
    said = {}
    for steered in ("in", "out", ""):
        pattern = kind(*sizes, selector=selector, golden=steered)
        prefilled = read(model, tokens, [pattern], 2)
        hits, prefilled = staged.watch(model, prefilled, keys, answers, golden, pattern, NEW)
        assert hits[:, 1:].all()
        if steered:
            assert (hits[:, 0] == (steered == "in")).all()
        else:
            assert not hits[:, 0].all()
        out, reads, _ = staged.answer(
            model, prefilled, keys, jnp.int32(-1), pattern, NEW, golden if steered else None
        )
        said[steered] = out
        if kind is snapkv.SnapKV:  # as many are kept, whichever they are
            np.testing.assert_array_equal(reads.read[0], (12 + 1) * (NEW - 1) + 78)
    for steered in ("in", "out"):
        np.testing.assert_array_equal(said[steered][1:], said[""][1:])
    assert (said["in"][0] != said["out"][0]).any()
