"""Lines up what two backbones answered: equal seeds, equal prompts."""

from dataclasses import dataclass

import numpy as np

from ratjax.needle.random_effects import Differences
from ratjax.needle.report.grid import Cell, Group, replicate
from ratjax.needle.report.predictions import CellPredictions, Predictions
from ratjax.needle.report.records import Setting

Seeds = tuple[int | None, int | None]  # training, selector


@dataclass(frozen=True)
class Pairs:
    """Strict scores in points [R, P] of both sides, on the same seeds and prompts."""

    seeds: tuple[Seeds, ...]
    indices: tuple[int, ...]
    baseline: Differences
    other: Differences

    @property
    def differences(self) -> Differences:
        return self.other - self.baseline

    @property
    def full(self) -> Differences:
        """Differences of all answers right (100) or not (0), in points."""
        return 100.0 * (self.other >= 100) - 100.0 * (self.baseline >= 100)


def pair(
    group: Group, baseline: str, other: str, setting: Setting, task: str, predictions: Predictions
) -> Pairs | None:
    """What both backbones answered of one cell; None if nothing lines up."""
    first, second = group.cell(baseline, setting, task), group.cell(other, setting, task)
    return None if first is None or second is None else pair_cells(first, second, predictions)


def pair_cells(
    first: Cell, second: Cell, predictions: Predictions, by_training: bool = False
) -> Pairs | None:
    """The same of any two cells on the same prompts.

    Args:
        by_training: whether a seed of the second faces the first's answers of the same training,
            whatever the first's selector seed.
    """
    sides = [_by_seed(cell, predictions) for cell in (first, second)]
    if by_training:
        trained = {training: found for (training, _), found in sides[0].items()}
        sides[0] = {seed: trained[seed[0]] for seed in sides[1] if seed[0] in trained}
    seeds = sorted(sides[0].keys() & sides[1].keys(), key=str)
    if not seeds:
        return None
    named = [set(side[seed].prompts.items()) for side in sides for seed in seeds]
    indices = sorted(index for index, _ in set.intersection(*named))
    if not indices:
        return None
    scores = [
        np.array([[100.0 * side[seed].strict[i] for i in indices] for seed in seeds])
        for side in sides
    ]
    return Pairs(tuple(seeds), tuple(indices), *scores)


def _by_seed(cell: Cell, predictions: Predictions) -> dict[Seeds, CellPredictions]:
    return {replicate(r): predictions[r.key] for r in cell.results if r.key in predictions}


def scores_by_seed(cell: Cell, predictions: Predictions) -> tuple[tuple[Seeds, ...], Differences]:
    """Strict scores in points [R, P] of one cell, on the prompts that all its seeds answered.

    Returns:
        The seeds, and a row for each; no columns where predictions are missing.
    """
    found = _by_seed(cell, predictions)
    prompts = [set(side.prompts.items()) for side in found.values()] or [set()]
    indices = sorted(index for index, _ in set.intersection(*prompts))
    rows = [[100.0 * side.strict[i] for i in indices] for side in found.values()]
    return tuple(found), np.array(rows, np.float64).reshape(len(rows), len(indices))


def independent(rows: Differences, seeds: tuple[Seeds, ...]) -> Differences:
    """Rows that are draws of their own: a training's selector seeds are averaged.

    With one training the selector's seeds are the draws. With several, two selector seeds of one
    training share its weights and tell nothing new about other trainings.
    """
    trainings = list(dict.fromkeys(training for training, _ in seeds))
    if len(trainings) == 1:
        return rows
    places = [[i for i, (own, _) in enumerate(seeds) if own == each] for each in trainings]
    return np.stack([rows[place].mean(axis=0) for place in places])
