"""Differences task by task, coloured by sign and size, with the significant ones marked."""

from ratjax.needle.report import labels
from ratjax.needle.report.compare import ALPHA, Comparison, Difference
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.markup import Child, Markup, el, join
from ratjax.needle.report.records import Setting
from ratjax.needle.report.sections.common import (
    group_heading,
    head,
    mark,
    note,
    positions,
    scrolling,
    section,
)
from ratjax.needle.report.summary import resolution, test_name

# Alpha of the colour at a difference of 60 points or more; text stays readable on top of it.
_MOST_ALPHA = 0.6
_FULL_AT = 60.0


def heat(content: Content) -> Markup | None:
    """None where there is nothing to compare."""
    if not any(content.comparisons):
        return None
    parts: list[Child] = []
    for group, comparisons in zip(content.groups, content.comparisons, strict=True):
        for comparison in comparisons:
            parts += [group_heading(content, group), _table(content, group, comparison)]
    return section("differences", "Differences task by task", *parts)


def _table(content: Content, group: Group, comparison: Comparison) -> Markup:
    titles = [
        el("abbr", labels.task(task), title=f"{task}: {labels.task_note(task)}")
        for task in group.tasks
    ]
    rows = [_row(content, group, comparison, s) for s in group.settings]
    key = el(
        "p",
        join(
            [
                f"Strict score of {comparison.other} minus {comparison.baseline}, in points. ",
                el("b", "*"),
                f" significant at {100 * ALPHA:g} %; the others may be chance.",
            ]
        ),
        class_="note key",
    )
    table = el("table", head(["Setting", *titles]), el("tbody", *rows), class_="heat")
    return join([key, scrolling(table, "Differences task by task"), _explanation(comparison)])


def _row(content: Content, group: Group, comparison: Comparison, setting: Setting) -> Markup:
    cells = [_cell(content, comparison.cells.get((setting, task))) for task in group.tasks]
    name = el("th", group.setting_name(setting), scope="row")
    return el("tr", name, *cells, class_="reference" if setting.is_dense else None)


def _cell(content: Content, difference: Difference | None) -> Markup:
    if difference is None:
        return el("td", labels.DASH, class_="num")
    ahead = difference.other if difference.points > 0 else difference.baseline
    alpha = _MOST_ALPHA * min(1.0, abs(difference.points) / _FULL_AT)
    return el(
        "td",
        el("strong" if difference.significant else "span", labels.signed(difference.points)),
        el("b", mark(difference), class_="star"),
        class_=f"num tint{positions(content)[ahead] % 4}",
        style=f"--a:{alpha:.2f}",
        title=_details(difference),
    )


def _details(difference: Difference) -> str:
    if difference.p is None or difference.p_holm is None or difference.interval is None:
        return "no paired predictions"
    ends = labels.interval(difference.interval.low, difference.interval.high)
    return (
        f"paired 95 % interval {ends}; of {difference.prompts} prompts only {difference.other} "
        f"answers {difference.only_other}, only {difference.baseline} {difference.only_baseline}; "
        f"p = {labels.probability(difference.p)}, after Holm "
        f"{labels.probability(difference.p_holm)}"
    )


def _explanation(comparison: Comparison) -> Markup:
    if not comparison.tested:
        return note("Not tested: predictions of both backbones on the same prompts are missing.")
    name = test_name(comparison)
    seeds = (
        " In McNemar's test a prompt counts once, for the side that answers it in more seeds."
        if comparison.seeds > 1
        else ""
    )
    return note(
        f"Tested: {name}, with Holm's correction over the tasks of each setting.{seeds} "
        f"{resolution(comparison)}"
    )
