"""The memory as a module: identity, closed form, padding, documents, decode."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.model.memory import DecayMemory, initial_bias
from tests.decoders import initial

TINY = preset("tiny")


def memory(config=MemoryConfig(), seed=0):
    return DecayMemory(with_memory(TINY, config), config, jax.random.key(seed))


def inputs(time=23, batch=2, seed=1):
    rng, heads = np.random.default_rng(seed), (TINY.num_kv_heads, TINY.head_dim)
    shapes = [(TINY.hidden_size,), heads, heads]
    return [jnp.asarray(rng.normal(size=(batch, time, *s)).astype("float32")) for s in shapes]


def randomized(module, seed=2):
    """Every parameter away from its special start, so that nothing holds by accident."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype("float32"), module)


@pytest.mark.parametrize("gate_input", ["raw", "normalized"])
@pytest.mark.parametrize("gate_bias", [True, False])
def test_matches_equation_1(gate_input, gate_bias):
    init = "near_identity" if gate_bias else "normal"
    module = randomized(memory(MemoryConfig(gate_input, gate_bias, init)))
    x, k, v = inputs()
    (k_mem, v_mem), (k_last, v_last) = module(x, k, v)
    z = np.asarray(x, np.float64)
    if gate_input == "normalized":
        z = z / np.sqrt((z**2).mean(-1, keepdims=True) + TINY.norm_eps)
    logits = np.einsum("btm,mgd->btgd", z, np.asarray(module.weight[...], np.float64))
    if gate_bias:
        logits = logits + np.asarray(module.bias[...], np.float64)
    g = 1 / (1 + np.exp(-logits))
    for states, last, raw in ((k_mem, k_last, k), (v_mem, v_last, v)):
        h = np.zeros(raw[:, 0].shape)
        for t in range(raw.shape[1]):
            h = g[:, t] * h + (1 - g[:, t]) * np.asarray(raw[:, t], np.float64)
            np.testing.assert_allclose(states[:, t], h, atol=1e-5)  # float32 rounding
        np.testing.assert_allclose(last, h, atol=1e-5)


def test_constant_gate_has_a_closed_form():
    module = memory(MemoryConfig(init="near_identity", init_bias=1.5))
    x, k, v = inputs(time=40)
    (k_mem, _), _ = module(x, k, v)
    g = 1 / (1 + np.exp(-1.5))
    lag = np.arange(40)[:, None] - np.arange(40)
    weights = np.where(lag >= 0, (1 - g) * g ** np.maximum(lag, 0), 0)
    np.testing.assert_allclose(k_mem, np.einsum("ts,bsgd->btgd", weights, k), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"), [("olmo2", "float32"), ("olmo2", "bfloat16"), ("ratplus", "float32")]
)
def test_zero_gate_is_plain_attention_bit_for_bit(shape, dtype):
    if shape == "olmo2":
        config = dataclasses.replace(TINY, dtype=dtype)
    else:
        config = dataclasses.replace(
            TINY, dtype=dtype, mlp="gelu", norm="pre", qk_norm=False, output_gate=True,
            tie_embeddings=True,
        )  # fmt: skip
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (2, 50), np.int32)
    plain = initial(config)
    identity = initial(with_memory(config, MemoryConfig(init="identity")))
    np.testing.assert_array_equal(plain(tokens), identity(tokens))
    # The same parameters must not give the same logits once the gate opens.
    opened = initial(with_memory(config, MemoryConfig(init_bias=0.0)))
    assert np.abs(plain(tokens) - opened(tokens)).max() > 1e-2


def test_padding_carries_the_state():
    module = randomized(memory())
    x, k, v = inputs(time=20)
    lengths = np.array([20, 7])
    valid = jnp.arange(20) < lengths[:, None]
    poisoned = [jnp.where(valid[..., None, None], a, jnp.nan) for a in (k, v)]
    (k_mem, v_mem), (k_last, v_last) = module(x, *poisoned, valid=valid)
    for b, n in enumerate(lengths):
        np.testing.assert_array_equal(k_last[b], k_mem[b, n - 1])
        np.testing.assert_array_equal(v_last[b], v_mem[b, n - 1])
    (_, _), (alone, _) = module(x[1:, :7], k[1:, :7], v[1:, :7])
    np.testing.assert_allclose(k_last[1], alone[0], atol=1e-6)


def test_documents_start_afresh():
    module = randomized(memory())
    x, k, v = inputs(time=20)
    starts = np.zeros((2, 20), bool)
    starts[:, 8] = True
    (k_mem, v_mem), _ = module(x, k, v, document_starts=jnp.asarray(starts))
    (k_alone, v_alone), _ = module(x[:, 8:], k[:, 8:], v[:, 8:])
    np.testing.assert_allclose(k_mem[:, 8:], k_alone, atol=1e-6)
    np.testing.assert_allclose(v_mem[:, 8:], v_alone, atol=1e-6)


def test_steps_equal_the_scan():
    module = randomized(memory())
    x, k, v = inputs(time=12)
    (k_mem, v_mem), last = module(x, k, v)
    state = (jnp.zeros_like(k[:, 0]), jnp.zeros_like(v[:, 0]))
    for t in range(12):
        at = slice(t, t + 1)
        (k_t, v_t), state = module.step(x[:, at], k[:, at], v[:, at], state)
        np.testing.assert_allclose(k_t, k_mem[:, at], atol=1e-6)
        np.testing.assert_allclose(v_t, v_mem[:, at], atol=1e-6)
    np.testing.assert_allclose(state[0], last[0], atol=1e-6)


def test_initial_gates():
    shape, key = (4, 64), jax.random.key(0)
    bias = initial_bias(MemoryConfig(init_bias=-6.0), shape, key)
    np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.0024726, rtol=1e-4)
    lengths = 1 + np.exp(initial_bias(MemoryConfig(init="log_uniform"), shape, key))
    assert lengths.min() >= 2 - 1e-5
    assert lengths.max() <= 64 + 1e-3
    # Log-uniform: half of them below the geometric mean of 2 and 64.
    assert 0.4 < (lengths < np.sqrt(2 * 64)).mean() < 0.6
    assert (initial_bias(MemoryConfig(init="identity"), shape, key) == -jnp.inf).all()


def test_effective_length_is_one_over_one_minus_g():
    module = randomized(memory())
    x, _, _ = inputs()
    g = jax.nn.sigmoid(module.gate_logits(x))
    np.testing.assert_allclose(module.effective_length(x), 1 / (1 - g), rtol=1e-4)
