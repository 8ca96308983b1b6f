"""The models that whole-step benchmarks run: the study's shape and OLMo2's, with the memory."""

import dataclasses

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset

STUDY = dataclasses.replace(preset("study"), dtype="bfloat16", memory=MemoryConfig())
OLMO2_1B = dataclasses.replace(
    preset("olmo2_1b"), dtype="bfloat16", remat="save_products", unroll=16, memory=MemoryConfig()
)
OLMO2_7B = dataclasses.replace(
    preset("olmo2_7b"), dtype="bfloat16", remat="save_products", unroll=8, memory=MemoryConfig()
)
