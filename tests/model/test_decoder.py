"""The decoder as a whole: shapes, causality, published layer orders, the matched pair."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.experiment import Experiment
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.presets import PRESETS, preset, with_memory
from ratjax.errors import ConfigError
from ratjax.model import Decoder
from ratjax.sparsity import dense, dilated, moba, quest, snapkv
from tests.decoders import initial

TINY = preset("tiny")
RATPLUS = dataclasses.replace(
    TINY, mlp="gelu", norm="pre", qk_norm=False, output_gate=True, tie_embeddings=True
)


def tokens_for(config, batch=2, time=24, seed=1):
    return jax.random.randint(jax.random.key(seed), (batch, time), 0, config.vocab_size)


@pytest.mark.parametrize("config", [TINY, RATPLUS], ids=["olmo2", "ratplus"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory", [None, MemoryConfig()], ids=["attention", "memory"])
def test_logits_are_float32_and_finite(config, dtype, memory):
    model = initial(with_memory(dataclasses.replace(config, dtype=dtype), memory))
    logits = model(tokens_for(config))
    assert logits.dtype == jnp.float32
    assert logits.shape == (2, 24, config.vocab_size)
    assert jnp.isfinite(logits).all()
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(model))


@pytest.mark.parametrize(
    "pattern",
    [dense.Dense(), dilated.Dilated(4, 2, 1), moba.MoBA(8, 2), quest.Quest(8, 2),
     snapkv.SnapKV(2, 4)],
)  # fmt: skip
def test_causality_by_gradient(pattern):
    """The loss at position t has no gradient with respect to any later embedding."""
    model = initial(with_memory(TINY, MemoryConfig(init="log_uniform")))
    tokens = tokens_for(TINY, batch=1)
    embedded = model.embed(tokens, tokens)

    @jax.jit
    @jax.grad
    def gradient(embedded, t):
        replaced = jax.tree.map(lambda a: a, model)
        object.__setattr__(replaced, "embed", lambda *_: embedded)
        return replaced.hidden(tokens, pattern)[0, t].sum()

    for t in (0, 9, 23):
        reach = np.abs(gradient(embedded, t)[0]).max(-1)
        assert (reach[t + 1 :] == 0).all()
        assert reach[t] > 0
        assert t == 0 or reach[t - 1] > 0  # the memory and the local block look back


def test_olmo2_block_is_post_norm_and_ratplus_pre_norm():
    """Scaling the residual's input tells the two orders apart, whatever the weights."""
    for config, invariant in ((TINY, False), (RATPLUS, True)):
        model = initial(config)
        block = jax.tree.map(lambda a: a[0], model.blocks)
        x = 5 * jax.random.normal(jax.random.key(2), (1, 8, config.hidden_size))
        attend = lambda h: (block.attention(h, dense.Dense()),)  # noqa: B023, E731
        added = block(x, attend)[0] - x
        added_scaled = block(1000 * x, attend)[0] - 1000 * x
        close = np.allclose(added, added_scaled, atol=2e-2 * float(np.abs(added).max()))
        assert close == invariant


@pytest.mark.parametrize("remat", ["save_products", "save_attention", "full"])
def test_rematerialisation_changes_no_gradient(remat):
    config = with_memory(TINY, MemoryConfig())
    tokens = tokens_for(config)

    def gradients(policy):
        model = initial(dataclasses.replace(config, remat=policy))
        return jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(m.hidden(tokens)))))(model)

    expected, found = gradients("none"), gradients(remat)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        # Another fusion, same sums: float32's rounding of the largest terms.
        np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(a).max(), rtol=1e-4)


def experiment(**changes):
    return Experiment(name="pair", model=dataclasses.replace(TINY, **changes))


def test_the_pair_differs_in_one_field():
    attention = dataclasses.asdict(experiment().model_config("attention"))
    memory = dataclasses.asdict(experiment().model_config("memory"))
    assert [f for f in attention if attention[f] != memory[f]] == ["memory"]


def test_the_pair_shares_its_initial_parameters():
    pair = experiment(qk_init="equal", previous_token_embedding=True)
    attention, memory = (
        dict(jax.tree_util.tree_leaves_with_path(initial(pair.model_config(b), 4)))
        for b in ("attention", "memory")
    )
    extra = set(memory) - set(attention)
    assert extra
    assert all("memory" in jax.tree_util.keystr(path) for path in extra)
    for path, leaf in attention.items():
        np.testing.assert_array_equal(leaf, memory[path])


@pytest.mark.parametrize(
    "pattern",
    [quest.Quest(8, 2), moba.MoBA(8, 2), snapkv.SnapKV(2, 6)],
    ids=lambda p: type(p).__name__,
)
def test_the_pair_selects_by_the_same_program(pattern):
    """What each backbone hands to the selection has one shape, and the step one jaxpr."""
    lengths = jnp.array([24, 11], jnp.int32)

    def selection(backbone):
        model = initial(experiment().model_config(backbone))
        attention = jax.tree.map(lambda a: a[0], model.blocks).attention
        x = jax.random.normal(jax.random.key(1), (2, 24, TINY.hidden_size))
        q, k, v, _ = attention.states(x)
        if isinstance(pattern, quest.Quest):
            cache = pattern.compress(q, k, v, lengths, 4)
            return str(jax.make_jaxpr(lambda q, c: pattern.select(q, c))(q[:, :1], cache))
        if isinstance(pattern, moba.MoBA):
            return str(jax.make_jaxpr(lambda q, k: pattern.select(q, k))(q, k))
        return str(jax.make_jaxpr(lambda q, k: pattern.select(q, k, lengths))(q, k))

    assert selection("attention") == selection("memory")


def test_equal_qk_init_copies_each_groups_first_query_head():
    model = initial(dataclasses.replace(TINY, qk_init="equal"))
    attention = model.blocks.attention
    np.testing.assert_array_equal(attention.w_k[...], attention.w_q[...][:, :, ::2])


def test_previous_token_embedding_is_the_previous_tokens():
    config = dataclasses.replace(TINY, previous_token_embedding=True)
    model = initial(config)
    tokens = jnp.array([[3, 5, 7]], jnp.int32)
    table, before = model.embedding[...], model.previous_embedding[...]
    hidden = model.embed(tokens, jnp.array([[-1, 3, 5]], jnp.int32))
    np.testing.assert_allclose(
        hidden[0], jnp.stack([table[3], table[5] + before[3], table[7] + before[5]])
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("olmo2_1b", 1.485e9), ("olmo2_7b", 7.299e9), ("olmo2_13b", 13.716e9),
     ("ratplus_1b", 1.475e9), ("ratplus_3b", 2.65e9), ("ratplus_7b", 7.647e9)],
)  # fmt: skip
def test_presets_have_the_published_sizes(name, parameters):
    model = jax.eval_shape(lambda key: Decoder(PRESETS[name], key), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert abs(count / parameters - 1) < 2e-3


def test_full_rank_gate_adds_the_published_parameters():
    config = with_memory(preset("olmo2_7b"), MemoryConfig(init="normal", gate_bias=False))

    def size(config):
        model = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(model))

    assert size(config) - size(preset("olmo2_7b")) == 32 * 4096**2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3"),
        ({"head_dim": 15}, "head_dim=15"),
        ({"norm": "sandwich"}, "norm='sandwich'"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"remat": "some"}, "remat='some'"),
    ],
)
def test_bad_fields_are_named(changes, field):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(TINY, **changes)


def test_bad_memory_fields_are_named():
    with pytest.raises(ConfigError, match="gate_bias=False"):
        MemoryConfig(gate_bias=False)
    with pytest.raises(ConfigError, match="init='zero'"):
        MemoryConfig(init="zero")
    with pytest.raises(ConfigError, match=r"model\.memory"):
        Experiment(name="x", model=with_memory(TINY, MemoryConfig()))


def test_model_config_is_hashable():
    assert hash(ModelConfig(8, 8, 1, 1, 1, 8, 8)) == hash(ModelConfig(8, 8, 1, 1, 1, 8, 8))
