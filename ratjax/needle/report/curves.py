"""What the accuracy curves show, before anything is drawn: shared by the page and the figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ratjax.needle.report import labels, paper
from ratjax.needle.report.grid import Group
from ratjax.needle.report.records import Setting
from ratjax.needle.statistics import Estimate


@dataclass(frozen=True)
class CurvePoint:
    setting: Setting
    score: Estimate


@dataclass(frozen=True)
class Curve:
    """Scores of one backbone and selector by budget, from the smallest up.

    `checkpoints` is None for our own scores and a key of `paper.CHECKPOINTS` for the paper's,
    whose estimates have no width.
    """

    backbone: str
    selector: str
    checkpoints: str | None
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Panel:
    """One chart: a task (or the mean of all), its curves, and each backbone's dense score."""

    title: str
    note: str
    curves: tuple[Curve, ...]
    dense: tuple[tuple[str, Estimate], ...]


@dataclass(frozen=True)
class Variant:
    """One method at one block size: the mean over tasks, and a panel a task."""

    label: str
    method: str
    budgets: tuple[str, ...]
    average: Panel
    panels: tuple[Panel, ...]


def variants(group: Group) -> tuple[Variant, ...]:
    """The sparse methods of a group, each block size by itself."""
    kinds = dict.fromkeys((s.method, s.block_size) for s in group.sparse_settings)
    found = []
    for method, block_size in kinds:
        settings = [
            s for s in group.sparse_settings if (s.method, s.block_size) == (method, block_size)
        ]
        settings.sort(key=lambda s: (s.fraction, s.k or 0))
        own = settings[0]
        found.append(
            Variant(
                label=labels.variant(own) if group.blocks_matter(own) else labels.method(method),
                method=method,
                budgets=tuple(dict.fromkeys(labels.budget(s.budget) for s in settings)),
                average=_panel(group, settings, None),
                panels=tuple(_panel(group, settings, task) for task in group.tasks),
            )
        )
    return tuple(found)


def selectors(settings: Iterable[Setting]) -> list[str]:
    """The selectors that are drawn: what else was changed about them stands in tables alone."""
    found = dict.fromkeys(s.selector for s in settings)
    return [name for name in found if name in ("original", "random")] or list(found)


def _panel(group: Group, settings: Sequence[Setting], task: str | None) -> Panel:
    curves = []
    for selector in selectors(settings):
        chosen = [s for s in settings if s.selector == selector]
        for backbone in group.backbones:
            points = [(s, _score(group, backbone, s, task)) for s in chosen]
            curves.append(_curve(backbone, selector, None, points))
            # Means over other tasks than the paper's could not be compared with it.
            comparable = task is not None or set(group.tasks) == paper.tasks()
            for checkpoints in paper.CHECKPOINTS if comparable else ():
                points = [(s, _paper_score(checkpoints, backbone, s, task)) for s in chosen]
                curves.append(_curve(backbone, selector, checkpoints, points))
    dense = group.dense_setting
    references = [(b, _score(group, b, dense, task)) for b in group.backbones] if dense else []
    return Panel(
        title=labels.task(task) if task else f"Mean of {len(group.tasks)} tasks",
        note=labels.task_note(task) if task else "",
        curves=tuple(curve for curve in curves if curve.points),
        dense=tuple((backbone, score) for backbone, score in references if score is not None),
    )


def _curve(
    backbone: str,
    selector: str,
    checkpoints: str | None,
    points: Sequence[tuple[Setting, Estimate | None]],
) -> Curve:
    known = tuple(CurvePoint(s, score) for s, score in points if score is not None)
    return Curve(backbone, selector, checkpoints, known)


def _score(group: Group, backbone: str, setting: Setting, task: str | None) -> Estimate | None:
    if task is None:
        return group.average(backbone, setting)
    cell = group.cell(backbone, setting, task)
    return None if cell is None else cell.strict


def _paper_score(
    checkpoints: str, backbone: str, setting: Setting, task: str | None
) -> Estimate | None:
    found = paper.find(checkpoints, backbone, setting, task)
    return None if found is None else Estimate(found.score, found.score, found.score)
