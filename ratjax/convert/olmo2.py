"""OLMo2 in Hugging Face's form: its config.json, and where its tensors go.

Field and tensor names are those of transformers' `Olmo2ForCausalLM`.
"""

from collections.abc import Mapping
from typing import Any

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.overrides import from_mapping, to_json
from ratjax.convert.layout import Layout, Placement
from ratjax.errors import ConfigError, InputError

MEMORY_FIELD = "ratjax_memory"
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "norm_eps",
}
# Fields whose other values this model does not have.
FIXED = {"hidden_act": "silu", "attention_bias": False, "rope_scaling": None}
# What an exported model must have, with the remedy for none.
REQUIRED = {
    "mlp": "swiglu",
    "norm": "post",
    "qk_norm": True,
    "output_gate": False,
    "previous_token_embedding": False,
}


def read_config(config: Mapping[str, Any], source: object) -> ModelConfig:
    """The model that a config.json describes.

    Args:
      config: its content.
      source: names it in messages.

    Raises:
      InputError: another architecture, a missing field, or a setting this model does not have.
    """
    kind = config.get("model_type")
    if kind != "olmo2":
        raise InputError(
            f"{source}: model_type={kind!r}; only 'olmo2' and released RAT+ .pth files are read"
        )
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise InputError(f"{source}: {name}={config[name]!r}: must be {value!r}")
    missing = [name for name in SIZES if name not in config]
    if missing:
        raise InputError(f"{source}: has no field {missing[0]!r}")
    fields = {ours: config[theirs] for theirs, ours in SIZES.items()}
    for name in ("hidden_size", "num_attention_heads"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise InputError(f"{source}: {name}={config[name]!r}: must be a positive integer")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads and not config.get("head_dim"):
        raise InputError(
            f"{source}: num_attention_heads={heads} does not divide hidden_size={width}"
        )
    memory = config.get(MEMORY_FIELD)
    kv_heads = config.get("num_key_value_heads")
    try:
        return from_mapping(
            ModelConfig,
            {
                **fields,
                "num_kv_heads": heads if kv_heads is None else kv_heads,
                "head_dim": config.get("head_dim") or width // heads,
                "tie_embeddings": config.get("tie_word_embeddings", False),
                "rope_theta": rope_theta(config, source),
                "init_std": config.get("initializer_range", 0.02),
                "memory": None if memory is None else from_mapping(MemoryConfig, memory),
            },
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def rope_theta(config: Mapping[str, Any], source: object) -> float:
    """RoPE's base in either form of config: transformers 5 nests it in `rope_parameters`.

    Raises:
      InputError: in neither form, in both but different, or with frequencies that are scaled.
    """
    nested = config.get("rope_parameters") or {}
    if nested.get("rope_type", "default") != "default":
        raise InputError(f"{source}: rope_type={nested['rope_type']!r}: only 'default' is known")
    found = {c["rope_theta"] for c in (config, nested) if c.get("rope_theta") is not None}
    if len(found) != 1:
        what = f"two values of rope_theta, {sorted(found)}" if found else "no rope_theta"
        raise InputError(f"{source}: has {what}, at the top level or in rope_parameters")
    return found.pop()


def write_config(model: ModelConfig, base: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config.json for transformers 4 and 5; what only `base` knows is kept.

    Args:
      model: what is exported.
      base: the config.json that the model once came from, or nothing.
      dtype: of the weights, as PyTorch names it.

    Raises:
      ConfigError: the model is not an OLMo2.
    """
    for name, value in REQUIRED.items():
        if getattr(model, name) != value:
            raise ConfigError(
                f"model.{name}", getattr(model, name), f"OLMo2 has {value!r}; cannot be exported"
            )
    theta = model.rope_theta
    config = {"max_position_embeddings": 4096, "attention_dropout": 0.0, "use_cache": True, **base}
    if not base:
        config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config |= {theirs: getattr(model, ours) for theirs, ours in SIZES.items()} | FIXED
    config |= {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "num_key_value_heads": model.num_kv_heads,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if model.head_dim * model.num_heads != model.hidden_size:
        raise ConfigError(
            "model.head_dim",
            model.head_dim,
            "transformers' OLMo2 has hidden_size / num_attention_heads; cannot be exported",
        )
    del config["rope_scaling"]  # absent and null mean the same; version 5 wants it absent
    config.pop(MEMORY_FIELD, None)
    if model.memory is not None:
        config[MEMORY_FIELD] = to_json(model.memory)
    return config


def layout(model: ModelConfig) -> Layout:
    """Where every parameter but the memory's lies."""
    m, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    h, g, d = model.num_heads, model.num_kv_heads, model.head_dim

    def layers(name: str, source: tuple, split: tuple, axes: tuple) -> Placement:
        keys = tuple(f"model.layers.{i}.{name}.weight" for i in range(model.num_layers))
        return Placement(keys, source, split, axes)

    def once(key: str, source: tuple, axes: tuple) -> Placement:
        return Placement((key,), source, source, axes, stacked=False)

    def projection(name: str, heads: int) -> Placement:
        return layers(f"self_attn.{name}", (heads * d, m), (heads, d, m), (2, 0, 1))

    parameters = {
        "embedding": once("model.embed_tokens.weight", (v, m), (0, 1)),
        "norm/weight": once("model.norm.weight", (m,), (0,)),
        "blocks/attention/w_q": projection("q_proj", h),
        "blocks/attention/w_k": projection("k_proj", g),
        "blocks/attention/w_v": projection("v_proj", g),
        "blocks/attention/w_out": layers("self_attn.o_proj", (m, h * d), (m, h, d), (1, 2, 0)),
        "blocks/attention/q_norm/weight": layers("self_attn.q_norm", (h * d,), (h, d), (0, 1)),
        "blocks/attention/k_norm/weight": layers("self_attn.k_norm", (g * d,), (g, d), (0, 1)),
        "blocks/attention_norm/weight": layers("post_attention_layernorm", (m,), (m,), (0,)),
        "blocks/mlp_norm/weight": layers("post_feedforward_layernorm", (m,), (m,), (0,)),
        "blocks/mlp/w_up": layers("mlp.up_proj", (f, m), (f, m), (1, 0)),
        "blocks/mlp/w_gate": layers("mlp.gate_proj", (f, m), (f, m), (1, 0)),
        "blocks/mlp/w_down": layers("mlp.down_proj", (m, f), (m, f), (1, 0)),
    }
    if not model.tie_embeddings:
        parameters["head"] = once("lm_head.weight", (v, m), (1, 0))
    return parameters


def memory_layout(model: ModelConfig) -> Layout:
    """Where an exported memory lies: a file of its own, which transformers does not open."""
    if model.memory is None:
        return {}
    m, g, d = model.hidden_size, model.num_kv_heads, model.head_dim
    name = "model.layers.{}.self_attn.memory_gate.{}"

    def keys(part: str) -> tuple[str, ...]:
        return tuple(name.format(i, part) for i in range(model.num_layers))

    weight = Placement(keys("weight"), (g * d, m), (g, d, m), (2, 0, 1))
    parameters = {"blocks/attention/memory/weight": weight}
    if model.memory.gate_bias:
        bias = Placement(keys("bias"), (g * d,), (g, d), (0, 1))
        parameters["blocks/attention/memory/bias"] = bias
    return parameters
