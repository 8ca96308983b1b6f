"""The tables of a report without any markup: what Markdown and LaTeX both spell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ratjax.needle.report import labels, paper
from ratjax.needle.report.compare import ALPHA, Comparison, Difference, dense_gap
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.records import Setting
from ratjax.needle.report.sections.cost import cost_columns, cost_rows
from ratjax.needle.report.selectors import selector_rows
from ratjax.needle.report.summary import resolution, test_name
from ratjax.needle.report.tables import TableCell, table_rows
from ratjax.needle.statistics import Estimate

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


class Text(NamedTuple):
    """A cell: its text, whether it is set in bold, what follows it, whether a star does."""

    text: str
    bold: bool = False
    tail: str = ""
    star: bool = False


@dataclass(frozen=True)
class PlainTable:
    """A table whose first `left` columns are text, the others numbers; `note` explains it."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    left: int
    note: str = ""


def plain_tables(
    content: Content, group: Group, comparisons: Sequence[Comparison]
) -> list[PlainTable]:
    """All tables of a group."""
    return [
        _means(group, comparisons),
        _tasks(content, group),
        *(_differences(comparison) for comparison in comparisons),
        *_selectors(content, group),
        _cost(group),
    ]


def _means(group: Group, comparisons: Sequence[Comparison]) -> PlainTable:
    columns = ["Method", "Budget", *group.backbones]
    for comparison in comparisons:
        columns += [f"{comparison.other} minus {comparison.baseline} [95 %]", "net of dense [95 %]"]
    rows = []
    for setting in group.settings:
        row = [Text(group.method_name(setting)), Text(labels.budget(setting.budget))]
        row += [_score(group, backbone, setting) for backbone in group.backbones]
        for comparison in comparisons:
            row += _paired(comparison.averages.get(setting))
        rows.append(tuple(row))
    note = "In brackets behind a score: its change from dense."
    if comparisons:
        note += " Bold: the interval leaves out zero."
    return PlainTable("means", "Mean score", tuple(columns), tuple(rows), 2, note)


def _score(group: Group, backbone: str, setting: Setting) -> Text:
    score = group.average(backbone, setting)
    if score is None:
        found = len(group.of_setting(backbone, setting))
        return Text(f"{found} of {len(group.tasks)} tasks" if found else labels.DASH)
    gap = None if setting.is_dense else dense_gap(group, backbone, setting)
    change = "" if gap is None else f" ({labels.signed(gap)})"
    return Text(labels.number(score.mean), tail=change)


def _paired(difference: Difference | None) -> list[Text]:
    if difference is None:
        return [Text(labels.DASH), Text("")]
    net = difference.net_of_dense
    first = Text(labels.signed(difference.points))
    if difference.interval is not None:
        first = _estimated(difference.points, difference.interval)
    return [first, Text("") if net is None else _estimated(net.mean, net)]


def _estimated(points: float, estimate: Estimate) -> Text:
    ends = labels.interval(estimate.low, estimate.high)
    return Text(labels.signed(points), estimate.excludes_zero, f" {ends}")


def _tasks(content: Content, group: Group) -> PlainTable:
    rows = []
    for row in table_rows(content, group):
        cells = [_cell(cell) for cell in (*row.cells, row.mean)]
        rows.append((Text(group.setting_name(row.setting)), Text(row.backbone), *cells))
    columns = ("Setting", "Backbone", *map(labels.task, group.tasks), "Mean")
    note = ""
    if group.has_replicates:
        note = f"{PLUS_MINUS} one standard deviation over seeds."
    if content.reference is not None:
        note += (
            f" In brackets: the paper's ({paper.source()}; {paper.CHECKPOINTS[content.reference]})"
            " and ours minus it."
        )
    return PlainTable("tasks", "Strict score by task", columns, tuple(rows), 2, note.strip())


def _cell(cell: TableCell) -> Text:
    if cell.score is None:
        return Text(labels.DASH)
    tail = ""
    if cell.spread:
        tail = f" {PLUS_MINUS} {labels.number(cell.score.high - cell.score.mean)}"
    if cell.paper is not None:
        tail += f" ({labels.number(cell.paper.score)}, {labels.signed(cell.difference)})"
    return Text(labels.number(cell.score.mean), tail=tail)


def _differences(comparison: Comparison) -> PlainTable:
    group = comparison.group
    rows = []
    for setting in group.settings:
        found = [comparison.cells.get((setting, task)) for task in group.tasks]
        if any(found):
            rows.append((Text(group.setting_name(setting)), *map(_marked, found)))
    title = f"{comparison.other} minus {comparison.baseline}, by task"
    note = (
        f"* significant at {100 * ALPHA:g} %, the others may be chance: {test_name(comparison)}, "
        f"Holm's correction over the tasks. {resolution(comparison)}"
        if comparison.tested
        else "Not tested: there are no predictions of both on the same prompts."
    )
    columns = ("Setting", *map(labels.task, group.tasks))
    key = f"differences-{comparison.other}-{comparison.baseline}"
    return PlainTable(key, title, columns, tuple(rows), 1, note)


def _marked(difference: Difference | None) -> Text:
    if difference is None:
        return Text(labels.DASH)
    marked = difference.significant
    return Text(labels.signed(difference.points), marked, star=marked)


def _selectors(content: Content, group: Group) -> list[PlainTable]:
    found = selector_rows(content, group)
    if not found:
        return []
    rows = []
    for row in found:
        suffix = labels.selector_suffix(row.setting.selector)
        own = row.minus_own
        rows.append(
            (
                Text(group.setting_name(row.setting).removesuffix(suffix)),
                Text(labels.selector_name(row.setting.selector)),
                Text(row.backbone),
                _cell(row.mean),
                Text(str(row.seeds)),
                Text("") if own is None else _estimated(own.mean, own),
            )
        )
    columns = ("Setting", "Selector", "Backbone", "Mean score", "Seeds", "Minus own [95 %]")
    return [PlainTable("selectors", "What the selection is worth", columns, tuple(rows), 3)]


def _cost(group: Group) -> PlainTable:
    columns = ("Setting", "Backbone", *cost_columns(group))
    rows = tuple(tuple(map(Text, row)) for row in cost_rows(group))
    return PlainTable("cost", "Cost beside score", columns, rows, 2)
