"""Part A of the study: the recipe. As many runs, of the same length, for either backbone.

  python -m launch.study --config=experiments/study/tuning.py --workdir=runs/study/tuning

Every run is the base with what its name says changed. Round 1 tries for both what concerns both
(learning rate, curriculum, questions a context), and for the memory how its gate starts and the
recurrence schedule. It found all eight tasks learned by nearly all runs, and text learned better by
attention where a fifth of the batch is text; round 2 starts from there, on that data for both.
`--only='1-*'` runs the first round.

Chosen (docs/study/choice.py) by the mean dense needle score, on prompts that nothing else is
evaluated with, and by the loss on held-out text: of a backbone's runs on that data whose dense mean
is within a point of the best, the one with the lowest loss. No sparse method is run.
"""

from experiments.study.recipe import Recipe, experiment, tuning_needle
from experiments.study.runs import Run, config_of
from ratjax.config.model import MemoryConfig

SEED, SAMPLES = 100, 100
NEAR_IDENTITY, LOG_UNIFORM = MemoryConfig(), MemoryConfig(init="log_uniform")
# Released RAT+: N(0, 0.02^2), no bias, the tensor that feeds q, k and v as it is.
PUBLISHED = MemoryConfig(init="normal", gate_bias=False, gate_input="raw")

# What round 1 chose of what concerns the data, and the fields that do.
TEXT = {"text": 0.2}
DATA = ("curriculum", "questions", "text")

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
        "text_0.2-lr_5e-4": {**TEXT, "learning_rate": 5e-4},
        "text_0.2-lr_7e-4": {**TEXT, "learning_rate": 7e-4},
        "text_0.2-lr_1.5e-3": {**TEXT, "learning_rate": 1.5e-3},
        "text_0.2-lr_2e-3": {**TEXT, "learning_rate": 2e-3},
        "text_0.2-lr_3e-3": {**TEXT, "learning_rate": 3e-3},
        "text_0.2-lr_4e-3": {**TEXT, "learning_rate": 4e-3},
    },
    (2, "memory"): {
        "text_0.2": TEXT,
        "text_0.2-lr_2e-3": {**TEXT, "learning_rate": 2e-3},
        "text_0.2-recurrence": {**TEXT, "recurrence": "two_step"},
        "text_0.2-log_uniform": {**TEXT, "memory": LOG_UNIFORM},
        "text_0.2-log_uniform-recurrence": {
            **TEXT,
            "memory": LOG_UNIFORM,
            "recurrence": "two_step",
        },
        "text_0.2-published_gate-recurrence": {
            **TEXT,
            "memory": PUBLISHED,
            "recurrence": "two_step",
        },
    },
}


def fields_of(backbone: str, differs: str) -> dict[str, object]:
    """What a run changes of the base, by its name without round and backbone.

    Raises:
      KeyError: no such run.
    """
    tried = {name: f for (_, b), runs in TRIED.items() if b == backbone for name, f in runs.items()}
    return tried[differs]


def has_the_data(backbone: str, differs: str) -> bool:
    """Whether a run is on the data that round 2 starts from."""
    fields = fields_of(backbone, differs)
    return {name: value for name, value in fields.items() if name in DATA} == TEXT


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
