"""Loss curves from the metrics.jsonl files under a run folder."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ratjax.errors import InputError

METRICS = "metrics.jsonl"
# Checkpoint folders hold thousands of files: no deeper than train/<seed>/<backbone>/<phase>.
_DEPTH = 5
_MOST_POINTS = 400


@dataclass(frozen=True)
class LossCurve:
    """One training's loss (mean cross-entropy, nats a token) by step.

    `phase` is the file's folder without the backbone's name in it: trainings of one phase share a
    chart. `every` says how many logged steps were averaged into a point.
    """

    phase: str
    backbone: str | None
    steps: tuple[float, ...]
    losses: tuple[float, ...]
    every: int


def load_curves(folders: Sequence[Path], backbones: Sequence[str]) -> tuple[LossCurve, ...]:
    """Reads every metrics.jsonl under the folders; files without a logged step are left out.

    Args:
        backbones: the names to look for in the files' paths.

    Raises:
        InputError: a line that is not an object with numbers `step` and `loss`.
    """
    curves: list[LossCurve] = []
    for folder in folders:
        for path in _metrics_files(folder):
            place = path.parent.relative_to(folder).as_posix()
            backbone, phase = _split_place(place, backbones)
            steps, losses = _read(path)
            if steps:
                every = math.ceil(len(steps) / _MOST_POINTS)
                curves.append(
                    LossCurve(phase, backbone, _means(steps, every), _means(losses, every), every)
                )
    return tuple(curves)


def _metrics_files(folder: Path) -> Iterator[Path]:
    for depth in range(_DEPTH):
        yield from sorted(folder.glob("*/" * depth + METRICS))


def _split_place(place: str, backbones: Sequence[str]) -> tuple[str | None, str]:
    """("memory", "train/pretrain") from "train/memory/pretrain" or "train/pretrain-memory"."""
    for backbone in backbones:
        pattern = rf"(^|[/._-]){re.escape(backbone)}(?=$|[/._-])"
        phase, found = re.subn(pattern, "", place, count=1)
        if found:
            return backbone, phase.strip("/._-") or "train"
    return None, place if place != "." else "train"


def _read(path: Path) -> tuple[list[float], list[float]]:
    steps, losses = [], []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                step, loss = float(row["step"]), float(row["loss"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}: line {number}: needs numbers 'step' and 'loss' ({error!r})"
                ) from error
            if math.isfinite(loss):
                steps.append(step)
                losses.append(loss)
    return steps, losses


def _means(values: Sequence[float], every: int) -> tuple[float, ...]:
    chunks = (values[i : i + every] for i in range(0, len(values), every))
    return tuple(math.fsum(chunk) / len(chunk) for chunk in chunks)
