"""Published shapes: OLMo2 1B to 32B, released RAT+ 1B to 7B; the study's own, and `tiny` for tests.

OLMo2 from the checkpoints' config.json (allenai/OLMo-2-0425-1B, -1124-7B, -1124-13B,
-0325-32B); RAT+ from the released code (wimh966/rat-plus). RAT+ entries carry the memory as
released: no bias, N(0, 0.02^2), its layer's normalised input. OLMo2 entries are plain
attention; `with_memory` adds it.
"""

import dataclasses

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.errors import ConfigError, nearest

RATPLUS_MEMORY = MemoryConfig(gate_input="raw", gate_bias=False, init="normal")


def _olmo2(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=100352,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        intermediate_size=intermediate,
        rope_theta=500_000.0,
    )


def _ratplus(hidden: int, layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=32000,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=hidden // 128,
        num_kv_heads=hidden // 128,
        head_dim=128,
        intermediate_size=4 * hidden,
        mlp="gelu",
        norm="pre",
        qk_norm=False,
        output_gate=True,
        tie_embeddings=True,
        rope_theta=10_000.0,
        memory=RATPLUS_MEMORY,
    )


PRESETS = {
    "olmo2_1b": _olmo2(2048, 16, 16, 16, 8192),
    "olmo2_7b": _olmo2(4096, 32, 32, 32, 11008),
    "olmo2_13b": _olmo2(5120, 40, 40, 40, 13824),
    "olmo2_32b": _olmo2(5120, 64, 40, 8, 27648),
    "ratplus_1b": _ratplus(2048, 24),
    "ratplus_3b": _ratplus(2560, 28),
    "ratplus_7b": _ratplus(4096, 32),
    "study": ModelConfig(
        vocab_size=4096,
        hidden_size=512,
        num_layers=6,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        intermediate_size=1408,
        rope_theta=10_000.0,
    ),
    "tiny": ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        rope_theta=10_000.0,
    ),
}


def preset(name: str) -> ModelConfig:
    """The named configuration.

    Raises:
      ConfigError: unknown name; the message lists the nearest.
    """
    if name not in PRESETS:
        raise ConfigError("preset", name, nearest(name, PRESETS))
    return PRESETS[name]


def with_memory(config: ModelConfig, memory: MemoryConfig | None) -> ModelConfig:
    """The same model with (or, for None, without) the memory; nothing else differs."""
    return dataclasses.replace(config, memory=memory)
