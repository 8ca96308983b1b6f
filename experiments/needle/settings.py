"""What the paper's tables have in common: tasks, prompts, methods, blocks, budgets.

arXiv 2605.28640, Section 4 and Appendix A.1: eight tasks of 500 prompts, 4096 tokens of context,
every method at 1/4, 1/8 and 1/16 of the keys and values, applied in all layers.
"""

import dataclasses

from ratjax.config.experiment import Experiment
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.needle import Checkpoint, NeedleConfig, Setting
from ratjax.config.presets import RATPLUS_MEMORY, preset, with_memory
from ratjax.errors import ConfigError, nearest

# A cache of 16 prompts takes 35 GB beside 15 GB of weights, and 2 prompts more while they are read:
# what a device of 80 GB holds.
NEEDLE = NeedleConfig(batch_size=16, prefill_batch=2, dtype="bfloat16")

# Beside blocks of 64: Quest's small pages, MoBA's large blocks.
OTHER_BLOCKS = (
    Setting("quest", 16, 4, "1/64"),
    Setting("moba", 128, 8, "1/4"),
    Setting("moba", 128, 4, "1/8"),
)

# RAT+'s own patterns (wimh966/rat-plus): every D-th key, four initial ones, and a local window of
# none or 256. Their weights are adapted to a pattern before it is used; these are not.
DILATED = (
    Setting("dilated", 16, 0, "1/16", initial=4),
    Setting("dilated", 16, 0, "1/8", local=256, initial=4),
    Setting("dilated", 64, 0, "1/64", initial=4),
    Setting("dilated", 64, 0, "5/64", local=256, initial=4),
)

# The two together: K pages of 64 as Quest chooses them, and every 16th key of all others.
DILATED_TOP_K = (
    Setting("dilated", 16, 16, "5/16", page_size=64),
    Setting("dilated", 16, 8, "3/16", page_size=64),
    Setting("dilated", 16, 4, "1/8", page_size=64),
)


def tables(needle: NeedleConfig) -> dict[str, NeedleConfig]:
    """A table's variants: the paper's own settings, and dilated patterns, also with top-k pages."""
    return {
        "paper": dataclasses.replace(needle, extra=OTHER_BLOCKS),
        "dilated": dataclasses.replace(
            needle, methods=(), extra=(*DILATED, *DILATED_TOP_K), paper_checkpoints=""
        ),
    }


def pick(variants: dict, name: str):
    """The variant that stands behind the colon of `--config=<file>:<variant>`."""
    if name not in variants:
        raise ConfigError("variant", name, nearest(name, variants))
    return variants[name]


def olmo2(name: str, description: str, needle: NeedleConfig) -> Experiment:
    """An experiment on OLMo2-7B (allenai/OLMo-2-1124-7B) and what was trained from it."""
    return _experiment(name, description, preset("olmo2_7b"), MemoryConfig(), needle)


def released(name: str, description: str, needle: NeedleConfig) -> Experiment:
    """An experiment on the released 7B checkpoints of RAT+ (barpitf/ratplus)."""
    model = with_memory(preset("ratplus_7b"), None)
    return _experiment(name, description, model, RATPLUS_MEMORY, needle)


def _experiment(
    name: str, description: str, model: ModelConfig, memory: MemoryConfig, needle: NeedleConfig
) -> Experiment:
    model = dataclasses.replace(model, dtype="bfloat16")
    return Experiment(name, model, memory, description=description, samples=500, needle=needle)


OLMO2_PAIR = (
    Checkpoint(
        "attention",
        "olmo2_7b_sft",
        False,
        "convert allenai/OLMo-2-1124-7B (launch.convert), then fine-tune it on the needle tasks",
    ),
    Checkpoint(
        "memory",
        "olmo2_7b_memory_sft",
        True,
        "convert allenai/OLMo-2-1124-7B with --add_memory=near_identity, train it on 10B tokens of "
        "FineWeb-Edu, then fine-tune it on the needle tasks",
    ),
)
# What the paper leaves out: the same 10B tokens without the memory.
OLMO2_CONTROL = Checkpoint(
    "control",
    "olmo2_7b_control_sft",
    False,
    "train OLMo2-7B without the memory on the 10B tokens that the memory backbone had, then "
    "fine-tune it on the needle tasks",
)
RELEASED_PAIR = (
    Checkpoint(
        "attention",
        "ratplus_7b_attention_sft",
        False,
        "convert the attention checkpoint of barpitf/ratplus that was fine-tuned on the needle "
        "tasks (launch.convert), or fine-tune the pretrained one",
    ),
    Checkpoint(
        "memory",
        "ratplus_7b_sft",
        True,
        "convert the RAT+ checkpoint of barpitf/ratplus that was fine-tuned on the needle tasks "
        "(launch.convert), or fine-tune the pretrained one",
    ),
)
