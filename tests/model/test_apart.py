import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.model import staged
from ratjax.model.generation import prompt_keys
from ratjax.model.parameters import checksum
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.quest import Quest
from tests.decoders import initial

CONFIG = with_memory(dataclasses.replace(preset("tiny"), num_layers=3), MemoryConfig())


def stacked():
    return initial(CONFIG)


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(Quest(4, 2), marks=pytest.mark.slow, id="one"),
        pytest.param((Dense(), Quest(4, 2), Quest(4, 2)), id="by layer"),
    ],
)
def test_layers_apart_say_the_same(pattern):
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, CONFIG.vocab_size)
    lengths = jnp.asarray([16, 9], jnp.int32)
    expected = stacked().generate(tokens, lengths, 6, pattern)
    np.testing.assert_array_equal(stacked().apart().generate(tokens, lengths, 6, pattern), expected)


@pytest.mark.slow
def test_one_prefill_serves_layers_apart_too():
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, CONFIG.vocab_size)
    lengths, patterns = jnp.asarray([16, 9], jnp.int32), (Dense(), Quest(4, 2))
    keys = prompt_keys(np.arange(2), 0)

    def answers(model):
        found, pattern = [], staged.prefill_pattern(patterns)
        read = staged.prefill(model, tokens, lengths, keys, pattern, 6, rows=1)
        for one in patterns:
            said, _, read = staged.answer(model, read, keys, jnp.int32(-1), one, 6)
            found.append(np.asarray(said))
        return found

    for one, other in zip(answers(stacked()), answers(stacked().apart()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_and_its_layers_apart_are_one_model():
    model = stacked()
    before = checksum(model)
    apart = model.apart()
    assert checksum(apart) == before
    assert checksum(apart.apart()) == before
    assert jax.tree.leaves(model.blocks)[0].is_deleted()


def test_no_weight_is_copied_before_use():
    """The decode step of a stack slices it; with layers apart there is nothing to slice."""

    def text(model):
        def step(model, tokens):
            state = model.prefill(tokens, jnp.full(1, 8, jnp.int32), Dense(), 4)[1]
            return model.decode(tokens[:, :1], state, Dense())[0]

        return str(jax.make_jaxpr(step)(model, jnp.zeros((1, 8), jnp.int32)))

    wide = f"{CONFIG.num_layers},{CONFIG.hidden_size},{CONFIG.intermediate_size}]"
    assert wide in text(stacked())
    assert wide not in text(stacked().apart())
