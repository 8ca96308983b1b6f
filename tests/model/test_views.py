"""Gates and attention weights, laid open."""

import numpy as np
import pytest

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.errors import InputError
from ratjax.model.views import attention_inputs, attention_weights, effective_lengths, layer_of
from ratjax.sparsity.dense import Dense
from tests.decoders import initial

TOKENS = np.arange(20)[None] % 13


def decoder(memory):
    return initial(with_memory(preset("tiny"), memory))


def test_effective_lengths_of_a_known_gate():
    found = effective_lengths(decoder(MemoryConfig(init_bias=float(np.log(63)))), TOKENS)
    # A zero matrix and bias log(63): g = 63/64 everywhere; 1 + exp(.) in float32.
    np.testing.assert_allclose(found, np.full((2, 2), 64), rtol=1e-5)
    with pytest.raises(InputError, match="has no memory"):
        effective_lengths(decoder(None), TOKENS)


def test_weights_give_the_layers_own_output():
    model = decoder(MemoryConfig(init="log_uniform"))
    x = attention_inputs(model, TOKENS)[1]
    attention = layer_of(model, 1).attention
    weights = np.asarray(attention_weights(model, TOKENS, layer=1))
    _, _, v, _ = attention.states(x)
    attended = np.einsum("bhts,bshd->bthd", weights, np.repeat(v, 2, axis=2))
    found = np.einsum("bthd,hdm->btm", attended, attention.w_out[...])
    # float32 sums in another order
    np.testing.assert_allclose(found, attention(x, Dense()), atol=1e-5)


def test_without_memory_is_the_twin():
    gone = decoder(MemoryConfig(init="identity"))
    there = decoder(MemoryConfig(init="log_uniform"))
    np.testing.assert_allclose(
        attention_weights(there, TOKENS, layer=0, memory=False),
        attention_weights(gone, TOKENS, layer=0),
        atol=1e-6,
    )
    with_its_own = attention_weights(there, TOKENS, layer=0)
    assert np.abs(with_its_own - attention_weights(gone, TOKENS, layer=0)).max() > 1e-3
