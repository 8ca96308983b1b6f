"""The models that whole-step benchmarks run: the study's shape and OLMo2's, with the memory."""

import dataclasses

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.presets import preset

STUDY = ModelConfig(
    vocab_size=4096,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=1408,
    dtype="bfloat16",
    memory=MemoryConfig(),
)

OLMO2_1B = dataclasses.replace(
    preset("olmo2_1b"), dtype="bfloat16", remat="save_products", unroll=16, memory=MemoryConfig()
)
OLMO2_7B = dataclasses.replace(
    preset("olmo2_7b"), dtype="bfloat16", remat="save_products", unroll=8, memory=MemoryConfig()
)
