"""Choosing by raw keys and reading states, and the reverse: against brute force, in models."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.errors import ConfigError
from ratjax.model import generation, staged
from ratjax.model.attention import Attention
from ratjax.sparsity import dense, moba, quest, snapkv
from ratjax.sparsity.pattern import Both
from ratjax.sparsity.swapped import SETS, Swapped
from tests.model.test_generation import NEW, PROMPTS, Oracle, decoder, sequences, teacher_forced

METHODS = {"quest": quest.Quest(8, 3), "moba": moba.MoBA(8, 3), "snapkv": snapkv.SnapKV(6, 12)}
SWAPS = [swap for swap in itertools.product(SETS, SETS) if "raw" in swap]
LENGTHS = np.array([44, 17], np.int32)
STEPS = 3


@pytest.fixture(scope="module")
def drawn():
    """Queries, both keys and both values of two sequences, prompts and what follows them."""
    rng = np.random.default_rng(0)
    draw = lambda heads: rng.normal(size=(2, int(LENGTHS.max()) + STEPS, heads, 16))  # noqa: E731
    q, k_states, k_raw, v_states, v_raw = (
        draw(heads).astype("float32") for heads in (4, 2, 2, 2, 2)
    )
    return q, Both(k_states, k_raw), Both(v_states, v_raw)


def outputs(pattern, q, k, v):
    """Prefill's output at the prompts' tokens, then each decode step's, by sequence."""
    time = int(LENGTHS.max())
    inside = (np.arange(time) < LENGTHS[:, None])[..., None, None]
    cut = lambda x: jnp.asarray(np.where(inside, x[:, :time], 0))  # noqa: E731
    prompt, lengths = jax.tree.map(cut, (q, k, v)), jnp.asarray(LENGTHS)
    decoder, layer, steps = pattern.decodes_as, jnp.int32(0), []

    @jax.jit
    def prefill(prompt, lengths):
        cache = pattern.compress(*prompt, lengths, STEPS)
        # a stack of one layer
        return pattern.attend(*prompt, lengths)[0], jax.tree.map(lambda a: a[None], cache)

    @jax.jit
    def decode(q, k, v, cache):
        cache = cache.append(layer, k, v)
        return decoder.decode(q, cache.layer(layer))[0], cache

    first, cache = prefill(prompt, lengths)
    for step in range(STEPS):
        at = lambda x, step=step: jnp.asarray(x[np.arange(2), LENGTHS + step][:, None])  # noqa: E731
        k_new, v_new = jax.tree.map(at, (k, v))
        if not decoder.uses_raw:
            k_new, v_new = k_new.states, v_new.states
        out, cache = decode(at(q), k_new, v_new, cache)
        steps.append(out)
    steps = np.concatenate(steps, 1)
    return [np.concatenate([np.asarray(f)[:n], s]) for f, s, n in
            zip(first, steps, LENGTHS, strict=True)]  # fmt: skip


@pytest.mark.parametrize(("select_with", "attend_to"), SWAPS)
@pytest.mark.parametrize("method", METHODS)
def test_each_set_does_its_part(drawn, method, select_with, attend_to):
    found = outputs(Swapped(METHODS[method], select_with, attend_to), *drawn)
    for row, n in enumerate(LENGTHS):
        oracle = Oracle(method, int(n), select_with, attend_to)
        one = lambda x, row=row, n=n: np.asarray(x, np.float64)[row : row + 1, : n + STEPS]  # noqa: E731
        # float32 against float64: convex combinations of unit normals
        np.testing.assert_allclose(
            found[row], oracle.output(*jax.tree.map(one, drawn))[0], atol=1e-5
        )


def test_raw_keys_are_those_of_the_model_without_its_memory():
    for place in ("after_k_norm", "before_k_norm"):
        plain = dataclasses.replace(preset("tiny"), qk_norm=True)
        config = with_memory(plain, MemoryConfig(init="log_uniform", place=place))
        with_it, without = (Attention(c, jax.random.key(1)) for c in (config, plain))
        x = jax.random.normal(jax.random.key(2), (2, 9, config.hidden_size))
        valid = jnp.arange(9) < jnp.array([[9], [5]])
        states = jax.jit(Attention.states, static_argnames="with_raw")
        q, k, v, _ = states(with_it, x, valid, with_raw=True)
        expected = states(without, x, valid)
        for a, b in zip((q, k.raw, v.raw), expected, strict=False):
            np.testing.assert_array_equal(a, b)
        usual = states(with_it, x, valid)
        for a, b in zip((k.states, v.states), usual[1:], strict=False):
            np.testing.assert_array_equal(a, b)
        assert not np.allclose(k.raw, k.states)


EVERY = [(method, *swap) for method in METHODS for swap in SWAPS]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "select_with", "attend_to"), EVERY)
def test_a_memory_that_keeps_nothing_makes_no_difference(method, select_with, attend_to):
    model = decoder(init="identity")
    tokens = sequences(model.config.vocab_size)
    swapped = Swapped(METHODS[method], select_with, attend_to)
    want = generation.generate(model, tokens, PROMPTS, NEW, METHODS[method])
    found = generation.generate(model, tokens, PROMPTS, NEW, swapped)
    np.testing.assert_array_equal(found.tokens, want.tokens)
    for name in ("prefill", "decode"):
        for a, b in zip(getattr(found, name)[:2], getattr(want, name)[:2], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("method", "select_with", "attend_to"),
    [EVERY[0], *(pytest.param(*one, marks=pytest.mark.slow) for one in EVERY[1:])],
)
def test_every_decoded_token_of_a_model_equals_the_oracle(method, select_with, attend_to):
    model = decoder()
    tokens = sequences(model.config.vocab_size)
    swapped = Swapped(METHODS[method], select_with, attend_to)
    found, _, _ = teacher_forced(model, tokens, swapped)
    row, n = 0, int(PROMPTS[0])
    with jax.disable_jit():
        oracle = Oracle(method, n, select_with, attend_to)
        expected = np.asarray(model(tokens[row : row + 1, : n + NEW], oracle))[0, n - 1 :]
    # The oracle attends in float64; logits here are of order 1.
    np.testing.assert_allclose(found[row], expected, atol=2e-4)
    usual, _, _ = teacher_forced(model, tokens, METHODS[method])
    assert np.abs(usual[row] - expected).max() > 1e-2


@pytest.mark.slow
def test_one_prefill_serves_swapped_patterns_and_others():
    model, batch = decoder(), 3
    tokens, keys = sequences(model.config.vocab_size), generation.prompt_keys(np.arange(batch), 0)
    tokens = np.where(np.arange(48) < PROMPTS[:, None], tokens[:, :48], 0).astype(np.int32)
    patterns = [
        Swapped(METHODS["quest"], "raw"),
        dense.Dense(),
        Swapped(METHODS["snapkv"], "states", "raw"),
        Swapped(quest.Quest(8, 3, selector="random"), attend_to="raw"),
    ]
    shared = staged.prefill_pattern(patterns)
    assert (shared.window, shared.raw) == (6, True)
    prefilled = staged.prefill(
        model, jnp.asarray(tokens), jnp.asarray(PROMPTS, jnp.int32), keys, shared, NEW, batch
    )
    for pattern in (*patterns, patterns[0]):
        found, reads, prefilled = staged.answer(model, prefilled, keys, jnp.int32(-1), pattern, NEW)
        want = generation.generate(model, tokens, PROMPTS, NEW, pattern, width=48)
        np.testing.assert_array_equal(found, want.tokens)
        np.testing.assert_array_equal(reads.read, want.decode.read)
    # MoBA's keys and values differ in prefill alone: decoding it is dense, and one program.
    assert Swapped(METHODS["moba"], "raw").decodes_as == dense.Dense()
    with pytest.raises(ValueError, match="no prefill"):
        staged.prefill_pattern([dense.Dense(), Swapped(METHODS["moba"], "raw")])


def test_a_second_set_is_kept_only_where_it_is_used():
    q = jnp.ones((1, 16, 4, 16))
    k = v = Both(jnp.ones((1, 16, 2, 16)), jnp.zeros((1, 16, 2, 16)))
    sets = {}
    for swap in (("raw", "states"), ("states", "raw"), ("raw", "raw")):
        for method, pattern in METHODS.items():
            kept = Swapped(pattern, *swap).compress(q, k, v, jnp.array([16], jnp.int32), 4)
            if method == "moba":
                assert type(kept).__name__ == "KVCache" and kept.k.any()
            else:
                sets[method, *swap] = {name for name in SETS if getattr(kept, name) is not None}
    assert sets["quest", "raw", "states"] == sets["quest", "states", "raw"] == set(SETS)
    assert sets["quest", "raw", "raw"] == {"raw"}
    for swap in SWAPS:
        assert sets["snapkv", *swap] == {swap[1]}


def test_a_model_without_a_memory_is_refused():
    model = decoder(memory=False)
    with pytest.raises(ConfigError, match="there is none") as error:
        model.generate(np.ones((1, 16), np.int32), [9], 2, Swapped(METHODS["quest"], "raw"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "sets", "message"),
    [
        (quest.Quest(8, 3), ("keys", "raw"), "select_with='keys'"),
        (quest.Quest(8, 3), ("states", "states"), "swap nothing"),
        (quest.Quest(8, 3, selector="random"), ("raw", "raw"), "looks at no keys"),
    ],
)
def test_sets_that_make_no_sense_are_refused(pattern, sets, message):
    with pytest.raises(ConfigError, match=message):
        Swapped(pattern, *sets)
