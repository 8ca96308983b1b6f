"""Pairs the backbones prompt by prompt and judges their differences."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ratjax.needle.random_effects import CrossedMean, Differences, crossed_mean
from ratjax.needle.report.grid import Cell, Group
from ratjax.needle.report.pairing import Pairs, independent, pair, scores_by_seed
from ratjax.needle.report.predictions import Predictions
from ratjax.needle.report.records import Setting
from ratjax.needle.statistics import Estimate, holm, mcnemar_exact, paired_bootstrap

ALPHA = 0.05
DRAWS = 10_000
MEMORY = "memory"


@dataclass(frozen=True)
class Difference:
    """`other` minus `baseline`, in points.

    Of a cell (`task` given) or of the mean over the group's tasks (`task` None). Without paired
    predictions only `points` is known. `only_baseline` and `only_other` count prompts that one
    side answers fully (in more of the seeds) and the other does not; `over_seeds` is the mean
    difference of fully right answers with seeds and prompts as random effects, where there are
    several seeds.
    """

    setting: Setting
    task: str | None
    baseline: str
    other: str
    points: float
    interval: Estimate | None = None
    net_of_dense: Estimate | None = None
    seeds: int = 1
    prompts: int = 0
    only_baseline: int = 0
    only_other: int = 0
    over_seeds: CrossedMean | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        return self.p_holm is not None and self.p_holm <= ALPHA

    @property
    def discordant(self) -> float:
        """Share of the prompts on which exactly one side is right."""
        return (self.only_baseline + self.only_other) / self.prompts if self.prompts else 0.0


@dataclass(frozen=True)
class Comparison:
    """All differences of a group between its first backbone and one other."""

    group: Group
    baseline: str
    other: str
    averages: Mapping[Setting, Difference]
    cells: Mapping[tuple[Setting, str], Difference]

    @property
    def seeds(self) -> int:
        """The most seeds that a tested cell has."""
        return max((d.seeds for d in self.tested), default=1)

    @property
    def tested(self) -> list[Difference]:
        """Cells of the main settings that could be paired, so that they were tested."""
        main = self.group.main_settings
        return [d for (setting, _), d in self.cells.items() if setting in main and d.p is not None]


def compare(group: Group, predictions: Predictions) -> tuple[Comparison, ...]:
    """Compares the group's backbones in pairs; none if there is one alone.

    Every further backbone faces the first. The memory faces every other one too: what it gains
    over untouched attention, a control that was trained alike may gain as well.
    """
    first, *others = group.backbones
    pairs = [(first, other) for other in others]
    if MEMORY in others:
        pairs += [(other, MEMORY) for other in others if other != MEMORY]
    return tuple(_compare(group, *sides, predictions) for sides in pairs)


def _compare(group: Group, baseline: str, other: str, predictions: Predictions) -> Comparison:
    cells: dict[tuple[Setting, str], Difference] = {}
    averages: dict[Setting, Difference] = {}
    paired = {
        (setting, task): pair(group, baseline, other, setting, task, predictions)
        for setting in group.settings
        for task in group.tasks
    }
    for setting in group.settings:
        found = {
            task: _cell_difference(group, baseline, other, setting, task, paired[setting, task])
            for task in group.tasks
        }
        row = {task: difference for task, difference in found.items() if difference is not None}
        # One family of hypotheses a setting: its tasks.
        tested = [task for task, difference in row.items() if difference.p is not None]
        adjusted = holm([p for task in tested if (p := row[task].p) is not None])
        for task, p_holm in zip(tested, adjusted, strict=True):
            row[task] = replace(row[task], p_holm=p_holm)
        cells |= {(setting, task): difference for task, difference in row.items()}
        average = _average_difference(group, baseline, other, setting, paired)
        if average is not None:
            averages[setting] = average
    return Comparison(group, baseline, other, averages, cells)


def estimate(strata: Sequence[Differences]) -> Estimate | None:
    """Mean difference over strata (tasks) with its 95 % interval.

    With one seed prompts are resampled; with several, seeds and prompts are random effects. None
    where several seeds answered one prompt alone.
    """
    if len(strata[0]) == 1:
        return paired_bootstrap([rows[0] for rows in strata], DRAWS)
    if min(rows.shape[1] for rows in strata) < 2:
        return None
    return crossed_mean(strata).interval()


def score_interval(cell: Cell, predictions: Predictions) -> Estimate:
    """A cell's mean score with its 95 % interval.

    With one seed as evaluated (`needle.intervals`); with several, seeds and prompts are random
    effects, and the ends are kept within 0 to 100. One standard deviation over the seeds to either
    side, as in `Cell.strict`, where predictions are missing.
    """
    seeds, rows = scores_by_seed(cell, predictions)
    if len(cell.results) < 2 or len(seeds) < len(cell.results) or rows.shape[1] < 2:
        return cell.strict
    own = independent(rows, seeds)
    if len(own) < 2:
        return cell.strict
    found = crossed_mean([own]).interval()
    return Estimate(cell.strict.mean, max(0.0, found.low), min(100.0, found.high))


def _cell_difference(
    group: Group, baseline: str, other: str, setting: Setting, task: str, pairs: Pairs | None
) -> Difference | None:
    first, second = group.cell(baseline, setting, task), group.cell(other, setting, task)
    if first is None or second is None:
        return None
    points = second.strict.mean - first.strict.mean
    if pairs is None:
        return Difference(setting, task, baseline, other, points)
    rows, full = (independent(each, pairs.seeds) for each in (pairs.differences, pairs.full))
    # With several seeds a prompt votes once, for the side that answers it fully more often:
    # answers of two seeds to one prompt are not independent. With one seed this is McNemar's test.
    votes = full.sum(axis=0)
    only_baseline, only_other = int((votes < 0).sum()), int((votes > 0).sum())
    p, over_seeds = mcnemar_exact(only_baseline, only_other), None
    if min(full.shape) > 1:
        # Other trainings count too; the exact test stays as the bar for few prompts.
        over_seeds = crossed_mean([full])
        p = max(p, over_seeds.p)
    return Difference(
        setting,
        task,
        baseline,
        other,
        points,
        interval=estimate([rows]),
        seeds=len(rows),
        prompts=len(pairs.indices),
        only_baseline=only_baseline,
        only_other=only_other,
        over_seeds=over_seeds,
        p=p,
    )


def _average_difference(
    group: Group,
    baseline: str,
    other: str,
    setting: Setting,
    paired: Mapping[tuple[Setting, str], Pairs | None],
) -> Difference | None:
    first, second = group.average(baseline, setting), group.average(other, setting)
    if first is None or second is None:
        return None
    points = second.mean - first.mean
    strata = [pairs for task in group.tasks if (pairs := paired[setting, task]) is not None]
    same_seeds = len({pairs.seeds for pairs in strata}) == 1
    if len(strata) < len(group.tasks) or not same_seeds:
        return Difference(setting, None, baseline, other, points)
    rows = [independent(pairs.differences, pairs.seeds) for pairs in strata]
    return Difference(
        setting,
        None,
        baseline,
        other,
        points,
        interval=estimate(rows),
        seeds=len(rows[0]),
        net_of_dense=_net_of_dense(group, setting, strata, paired),
        prompts=sum(len(pairs.indices) for pairs in strata),
    )


def _net_of_dense(
    group: Group,
    setting: Setting,
    strata: Sequence[Pairs],
    paired: Mapping[tuple[Setting, str], Pairs | None],
) -> Estimate | None:
    """The difference minus the dense difference on the same prompts: who kept more, whatever
    each backbone scored dense."""
    dense = group.dense_setting
    if dense is None or setting.is_dense:
        return None
    net: list[Differences] = []
    for task, pairs in zip(group.tasks, strata, strict=True):
        reference = paired[dense, task]
        if reference is None:
            return None
        # Dense has no selector to seed, so its replicates are told apart by training seed alone.
        rows = {train_seed: row for row, (train_seed, _) in enumerate(reference.seeds)}
        common = [i for i in pairs.indices if i in set(reference.indices)]
        if not common or any(train_seed not in rows for train_seed, _ in pairs.seeds):
            return None
        here = [pairs.indices.index(i) for i in common]
        there = [reference.indices.index(i) for i in common]
        dense_rows = [rows[train_seed] for train_seed, _ in pairs.seeds]
        rows = pairs.differences[:, here] - reference.differences[dense_rows][:, there]
        net.append(independent(rows, pairs.seeds))
    return estimate(net)


def dense_gap(group: Group, backbone: str, setting: Setting) -> float | None:
    """Points that a backbone loses (negative) or gains against its own dense average."""
    dense = group.dense_setting
    own = group.average(backbone, setting)
    reference = group.average(backbone, dense) if dense is not None else None
    return None if own is None or reference is None else own.mean - reference.mean


def median_discordance(differences: Sequence[Difference]) -> float:
    """The usual share of discordant prompts, for power; 0 without any."""
    shares = [d.discordant for d in differences if d.prompts]
    return statistics.median(shares) if shares else 0.0
