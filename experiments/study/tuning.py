"""Part A of the study: the recipe. As many runs, of the same length, for either backbone.

  python -m launch.study --config=experiments/study/tuning.py --workdir=runs/study/tuning

Every run is the base with what its name says changed. Round 1 tries for both what concerns both
(learning rate, curriculum, questions a context), and for the memory how its gate starts and the
recurrence schedule; round 2 what is left. `--only='1-*'` runs the first round.

Chosen by the mean dense needle score, on prompts that nothing else is evaluated with, and by the
loss on held-out text. No sparse method is run.
"""

from experiments.study.recipe import Recipe, experiment, tuning_needle
from experiments.study.runs import Run, config_of
from ratjax.config.model import MemoryConfig

SEED, SAMPLES = 100, 100
NEAR_IDENTITY, LOG_UNIFORM = MemoryConfig(), MemoryConfig(init="log_uniform")
# Released RAT+: N(0, 0.02^2), no bias, the tensor that feeds q, k and v as it is.
PUBLISHED = MemoryConfig(init="normal", gate_bias=False, gate_input="raw")

# What differs from the base, by round and backbone. A name says all of it.
BOTH = {
    "base": {},
    "lr_3e-4": {"learning_rate": 3e-4},
    "lr_2e-3": {"learning_rate": 2e-3},
    "no_short_stage": {"curriculum": "full"},
    "questions_1": {"questions": 1},
}
TRIED = {
    (1, "attention"): {
        **BOTH,
        "lr_6e-4": {"learning_rate": 6e-4},
        "questions_3": {"questions": 3},
        "text_0.2": {"text": 0.2},
    },
    (1, "memory"): {
        **BOTH,
        "log_uniform": {"memory": LOG_UNIFORM},
        "published_gate": {"memory": PUBLISHED},
        "recurrence": {"recurrence": "two_step"},
    },
    (2, "attention"): {
        "lr_4e-3": {"learning_rate": 4e-3},
        "lr_1.5e-3": {"learning_rate": 1.5e-3},
        "lr_2e-3-questions_3": {"learning_rate": 2e-3, "questions": 3},
        "lr_2e-3-no_short_stage": {"learning_rate": 2e-3, "curriculum": "full"},
        "lr_2e-3-text_0.2": {"learning_rate": 2e-3, "text": 0.2},
        "lr_6e-4-no_short_stage": {"learning_rate": 6e-4, "curriculum": "full"},
        "lr_6e-4-text_0.2": {"learning_rate": 6e-4, "text": 0.2},
        "text_0.02": {"text": 0.02},
    },
    (2, "memory"): {
        "memory_lr_3e-3": {"memory_learning_rate": 3e-3},
        "memory_lr_3e-4": {"memory_learning_rate": 3e-4},
        "log_uniform-memory_lr_3e-4": {"memory": LOG_UNIFORM, "memory_learning_rate": 3e-4},
        "log_uniform-lr_2e-3": {"memory": LOG_UNIFORM, "learning_rate": 2e-3},
        "log_uniform-recurrence": {"memory": LOG_UNIFORM, "recurrence": "two_step"},
        "log_uniform-raw": {"memory": MemoryConfig(init="log_uniform", gate_input="raw")},
        "before_k_norm": {"memory": MemoryConfig(place="before_k_norm")},
        "bias_-2": {"memory": MemoryConfig(init_bias=-2.0)},
    },
}


def _run(number: int, backbone: str, changed: str, fields: dict) -> Run:
    name = f"{number}-{backbone}-{changed}"
    made = experiment(name, backbone, Recipe(**fields), SEED, SAMPLES, tuning_needle())
    return Run("tuning", name, backbone, changed, made)


RUNS = tuple(
    _run(number, backbone, changed, fields)
    for (number, backbone), tried in TRIED.items()
    for changed, fields in tried.items()
)


def get_config(name: str):
    return config_of(RUNS, name)
