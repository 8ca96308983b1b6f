"""Part B of the study: attention, attention with the memory, and two more arms to tell why.

  python -m launch.study --config=experiments/study/main.py --workdir=runs/study/main

  attention           the recipe, without the memory
  memory              the same with it: data, order, optimizer and shared parameters at the start
  attention_matched   attention that trains on, to the memory run's FLOPs and optimizer steps
  memory_published    released RAT+'s gate, and its two-step recurrence schedule in the stage of
                      text and copies, on the same data and in the same order

Three training seeds each, as long as a tuning run. `DIFFERS` has every field besides the backbone
in which `attention` and `memory` differ; it is empty where one recipe suits both. The rule that
chose `memory` asks for good needles and good text, which a memory that hardly remembers may serve
best; `memory_published` is there so that a memory that remembers is judged too, whatever the rule
says of it. It was listed before any sparse score was seen.
"""

import dataclasses

from experiments.study import tuning
from experiments.study.recipe import Recipe, experiment, main_needle
from experiments.study.runs import Run, config_of, flops, with_compute_of
from ratjax.config.experiment import Experiment

SEEDS, SAMPLES = (0, 1, 2), 500
HELD_OUT_BATCHES = 16  # of 32,768 tokens each

# The tuning runs that its rule chose (docs/study/choice.py).
CHOSEN = {"attention": "text_0.2-lr_1.5e-3", "memory": "text_0.2-lr_2e-3"}
# The tuning run with released RAT+'s gate and schedule, on the mixture that recipes are chosen on.
PUBLISHED = "text_0.2-published_gate-recurrence"
RECIPE = Recipe(**tuning.fields_of("memory", CHOSEN["memory"]))
_attention = Recipe(**tuning.fields_of("attention", CHOSEN["attention"]))
# Fields of `Recipe` that were chosen otherwise for attention; the memory's own mean nothing to it.
DIFFERS: dict[str, object] = {
    field.name: getattr(_attention, field.name)
    for field in dataclasses.fields(Recipe)
    if field.name not in ("memory", "memory_learning_rate", "recurrence")
    and getattr(_attention, field.name) != getattr(RECIPE, field.name)
}


def _arms(seed: int) -> list[Run]:
    def made(arm: str, backbone: str, recipe: Recipe) -> Experiment:
        one = experiment(f"{arm}-seed{seed}", backbone, recipe, seed, SAMPLES, main_needle())
        train = dataclasses.replace(one.train, held_out_batches=HELD_OUT_BATCHES)
        return dataclasses.replace(one, train=train)

    # The recurrence schedule belongs to the memory's training; attention gets its compute.
    attention = dataclasses.replace(RECIPE, recurrence="off", **DIFFERS)
    plain, memory = made("attention", "attention", attention), made("memory", "memory", RECIPE)
    matched = with_compute_of(made("attention_matched", "attention", attention), memory)
    own = Recipe(**tuning.fields_of("memory", PUBLISHED))
    published = made("memory_published", "memory", own)

    def more(one: Experiment) -> str:
        return f"{100 * (flops(one) / flops(plain) - 1):.1f} % more FLOPs"

    arms = {
        "attention": (plain, "no memory"),
        "memory": (memory, f"the memory: {more(memory)}"),
        "attention_matched": (matched, "no memory, trained on to the memory run's compute"),
        "memory_published": (published, f"the published gate and schedule: {more(published)}"),
    }
    return [Run("main", one.name, arm, differs, one) for arm, (one, differs) in arms.items()]


RUNS = tuple(run for seed in SEEDS for run in _arms(seed))


def get_config(name: str):
    return config_of(RUNS, name)
