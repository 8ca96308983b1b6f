"""Orders merged rows into groups that can be compared: backbone x setting x task.

A group is one context length (and one run, where several runs evaluated the very same cell, as
happens with different checkpoints). Within a group, rows that differ only in a training or
selector seed are replicates of one cell.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ratjax.needle.report import labels
from ratjax.needle.report.records import Result, Setting
from ratjax.needle.statistics import Estimate, average_interval


@dataclass(frozen=True)
class Cell:
    """One backbone, setting and task: a row for every replicate."""

    backbone: str
    setting: Setting
    task: str
    results: tuple[Result, ...]

    @cached_property
    def strict(self) -> Estimate:
        """Strict score: with one replicate its own 95 % interval over prompts, with several their
        mean with one standard deviation (over the seeds) to either side."""
        if len(self.results) == 1:
            (result,) = self.results
            return Estimate(result.score_strict, *result.ci95)
        return _mean_and_deviation([result.score_strict for result in self.results])

    @property
    def ruler(self) -> float:
        return statistics.fmean(result.score_ruler for result in self.results)

    @property
    def kv_read_fraction(self) -> float | None:
        return self.cost("kv_read_fraction")

    @property
    def samples(self) -> int:
        """Prompts per replicate (the fewest, should they differ)."""
        return min(result.samples for result in self.results)

    def cost(self, field: str) -> float | None:
        """Mean of a cost field over the replicates that measured it, None if none did."""
        values = [v for v in (result.cost(field) for result in self.results) if v is not None]
        return statistics.fmean(values) if values else None


def replicate(result: Result) -> tuple[int | None, int | None]:
    """What tells replicates of one cell apart: training seed and selector seed."""
    return (result.train_seed, result.selector_seed)


def _mean_and_deviation(values: Sequence[float]) -> Estimate:
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return Estimate(mean, mean - spread, mean + spread)


@dataclass(frozen=True)
class Group:
    """Cells that may stand in one table: `run` is None unless runs had to be kept apart."""

    context_length: int
    run: str | None
    results: tuple[Result, ...]

    @cached_property
    def cells(self) -> dict[tuple[str, Setting, str], Cell]:
        rows: dict[tuple[str, Setting, str], list[Result]] = defaultdict(list)
        for result in self.results:
            rows[result.backbone, result.setting, result.task].append(result)
        return {key: Cell(*key, tuple(found)) for key, found in rows.items()}

    @cached_property
    def backbones(self) -> tuple[str, ...]:
        """Attention, memory, then others by name; the first is what others are compared with."""
        return tuple(sorted({r.backbone for r in self.results}, key=labels.backbone_order))

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({r.task for r in self.results}, key=labels.task_order))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Dense first, then by method, block size (the one with most settings first), selector,
        and from the largest budget down."""
        found = {result.setting for result in self.results}
        common = Counter((setting.method, setting.block_size) for setting in found)

        def order(setting: Setting) -> Any:
            return (
                labels.method_order(setting.method),
                -common[setting.method, setting.block_size],
                setting.block_size or 0,
                labels.selector_order(setting.selector),
                -setting.fraction,
                setting.k or 0,
            )

        return tuple(sorted(found, key=order))

    @property
    def sparse_settings(self) -> tuple[Setting, ...]:
        return tuple(setting for setting in self.settings if not setting.is_dense)

    @property
    def main_settings(self) -> tuple[Setting, ...]:
        """Sparse settings with the methods' own selectors, or all where there are only others."""
        own = tuple(s for s in self.sparse_settings if s.selector == "original")
        return own or self.sparse_settings

    @property
    def dense_setting(self) -> Setting | None:
        return next((setting for setting in self.settings if setting.is_dense), None)

    @cached_property
    def has_replicates(self) -> bool:
        return any(len(cell.results) > 1 for cell in self.cells.values())

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """The distinct numbers of prompts a cell has."""
        return tuple(sorted({cell.samples for cell in self.cells.values()}))

    def blocks_matter(self, setting: Setting) -> bool:
        """Whether the group has the setting's method at several block sizes."""
        return len({s.block_size for s in self.settings if s.method == setting.method}) > 1

    def method_name(self, setting: Setting) -> str:
        """Without the budget: "Quest", with block size and selector where they tell rows apart."""
        matter = self.blocks_matter(setting)
        name = labels.variant(setting) if matter else labels.method(setting.method)
        return name + labels.selector_suffix(setting.selector)

    def setting_name(self, setting: Setting) -> str:
        """With the budget: "Quest 1/4", with block size and selector where they tell rows apart."""
        return labels.setting(setting, self.blocks_matter(setting))

    def cell(self, backbone: str, setting: Setting, task: str) -> Cell | None:
        return self.cells.get((backbone, setting, task))

    def of_setting(self, backbone: str, setting: Setting) -> list[Cell]:
        """The cells of one backbone and setting, in the order of the tasks."""
        found = (self.cell(backbone, setting, task) for task in self.tasks)
        return [cell for cell in found if cell is not None]

    def average(self, backbone: str, setting: Setting) -> Estimate | None:
        """Mean strict score over the group's tasks; None unless every task was evaluated, since
        means over different tasks would not be comparable."""
        cells = self.of_setting(backbone, setting)
        if len(cells) < len(self.tasks):
            return None
        seeds = [{replicate(result) for result in cell.results} for cell in cells]
        common = sorted(set.intersection(*seeds), key=str)
        if len(common) < 2:
            return average_interval([cell.strict for cell in cells])
        means = [
            statistics.fmean(
                result.score_strict
                for cell in cells
                for result in cell.results
                if replicate(result) == seed
            )
            for seed in common
        ]
        return _mean_and_deviation(means)


def groups(results: Iterable[Result]) -> tuple[Group, ...]:
    """Splits rows by context length, and by run where merging runs would mix two checkpoints."""
    results = tuple(results)
    cells = Counter(
        (r.backbone, r.context_length, r.setting, r.task, replicate(r)) for r in results
    )
    keep_runs_apart = max(cells.values()) > 1
    rows: dict[tuple[str | None, int], list[Result]] = defaultdict(list)
    for result in results:
        rows[result.run if keep_runs_apart else None, result.context_length].append(result)
    # Runs in the order given, context lengths ascending within each.
    order = list(dict.fromkeys(run for run, _ in rows))
    keys = sorted(rows, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(Group(length, run, tuple(rows[run, length])) for run, length in keys)
