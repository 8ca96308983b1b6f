"""A run of the study, what it computes, and how one run is given another's compute."""

import dataclasses
import fnmatch
import importlib.util
import math
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from ratjax.config.data import DataStage, schedule
from ratjax.config.experiment import Experiment
from ratjax.config.overrides import to_config_dict
from ratjax.errors import ConfigError, InputError, nearest
from ratjax.train.flops import step_flops
from ratjax.train.step import passes


@dataclasses.dataclass(frozen=True)
class Run:
    """One training with its evaluation.

    Attributes:
      study: `tuning` or `main`: what its results call `run`.
      name: tells it from all others; a folder's name.
      arm: what its results call `backbone`.
      differs: from its list's base, in words.
      experiment: everything else.
    """

    study: str
    name: str
    arm: str
    differs: str
    experiment: Experiment


def pick(runs: Sequence[Run], name: str) -> Run:
    """The run that stands behind the colon of `--config=<file>:<run>`.

    Raises:
      ConfigError: no such run.
    """
    known = {run.name: run for run in runs}
    if name not in known:
        raise ConfigError("run", name, nearest(name, known))
    return known[name]


def config_of(runs: Sequence[Run], name: str) -> ConfigDict:
    """The same as `get_config` returns it."""
    return to_config_dict(pick(runs, name).experiment)


def load(path: str) -> tuple[Run, ...]:
    """The list of runs of a file.

    Raises:
      InputError: no such file, or no list of runs in it.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"config={path!r}: no such file")
    spec = importlib.util.spec_from_file_location("study_of_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not getattr(module, "RUNS", None):
        raise InputError(f"config={path!r}: has no list RUNS; experiments/study/main.py has one")
    return tuple(module.RUNS)


def choose(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """The runs whose names match any of `only`, or all.

    Raises:
      InputError: a pattern that matches none.
    """
    for pattern in only:
        if not any(fnmatch.fnmatchcase(run.name, pattern) for run in runs):
            known = ", ".join(run.name for run in runs)
            raise InputError(f"only={pattern!r}: matches no run; known: {known}")
    return [r for r in runs if not only or any(fnmatch.fnmatchcase(r.name, p) for p in only)]


def flops(experiment: Experiment) -> float:
    """Floating-point operations of a training, by the formula of `ratjax.train.flops`."""
    return sum(
        (span.stop - span.start) * _step(experiment, span.stage)
        for span in schedule(experiment.train, experiment.data)
    )


def steps(experiment: Experiment) -> int:
    """Batches of a training."""
    return schedule(experiment.train, experiment.data)[-1].stop


def optimizer_steps(experiment: Experiment) -> int:
    """Optimizer steps of a training: active recurrence learning may take two a batch."""
    return sum(
        (span.stop - span.start) * len(passes(experiment.train, span.stage.recurrence))
        for span in schedule(experiment.train, experiment.data)
    )


def with_compute_of(experiment: Experiment, other: Experiment) -> Experiment:
    """The experiment with a longer last stage: no fewer operations or optimizer steps than `other`.

    What it is trained on up to there, and in which order, stays as it was.
    """
    *before, last = experiment.data.stages
    a_step = _step(experiment, last)
    extra = max(
        math.ceil((flops(other) - flops(experiment)) / a_step),
        math.ceil(
            (optimizer_steps(other) - optimizer_steps(experiment))
            / len(passes(experiment.train, last.recurrence))
        ),
        0,
    )
    longer = dataclasses.replace(last, steps=last.steps + extra)
    data = dataclasses.replace(experiment.data, stages=(*before, longer))
    return dataclasses.replace(experiment, data=data)


def _step(experiment: Experiment, stage: DataStage) -> float:
    model = experiment.model_config(experiment.backbone)
    patterns = [p for one in passes(experiment.train, stage.recurrence) for p in one.values()]
    return step_flops(model, patterns, stage.sequence_length, stage.batch_size)
