"""One method and budget under several selectors: what the selection is worth."""

from ratjax.needle.report import labels
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.markup import Child, Markup, el, join
from ratjax.needle.report.sections.common import (
    group_heading,
    note,
    number_cell,
    scrolling,
    section,
    sortable_head,
)
from ratjax.needle.report.selectors import SelectorRow, selector_rows

_TEXT = (
    "Means over the tasks, in percent; \N{PLUS-MINUS SIGN} one standard deviation over the seeds, "
    "else the 95 % interval over prompts. Minus own: paired with the method's own selector on the "
    "same prompts, bold where the interval leaves out zero. A random selector keeps what the "
    "setting forces; an answer forced out was read by no head at any step, so what is still right "
    "came through other positions."
)


def selectors(content: Content) -> Markup | None:
    """None where every setting has one selector alone."""
    parts: list[Child] = []
    for group in content.groups:
        rows = selector_rows(content, group)
        if rows:
            parts += [group_heading(content, group), _table(content, group, rows)]
    if not parts:
        return None
    return section("selectors", "What the selection is worth", *parts, note(_TEXT))


def _table(content: Content, group: Group, rows: list[SelectorRow]) -> Markup:
    columns: list[Child] = ["Mean score", "Spread", "Seeds", "Minus own [95 %]"]
    columns += ["Paper", "Minus paper"] if content.reference else []
    head = sortable_head(["Setting", "Selector", "Backbone"], columns)
    body = [_row(content, group, place, row) for place, row in enumerate(rows)]
    table = el("table", head, el("tbody", *body), class_="sortable")
    return scrolling(table, "What the selection is worth")


def _row(content: Content, group: Group, place: int, row: SelectorRow) -> Markup:
    setting, score = row.setting, row.mean.score
    name = group.setting_name(setting).removesuffix(labels.selector_suffix(setting.selector))
    parts: list[Child] = [
        el("th", name, scope="row", data_value=place),
        el("td", labels.selector_name(setting.selector)),
        el("td", row.backbone),
        number_cell(labels.number(score.mean if score else None)),
        number_cell(_spread(row), class_="quiet"),
        number_cell(row.seeds),
        number_cell(_minus_own(row)),
    ]
    if content.reference:
        theirs = row.mean.paper
        parts += [
            number_cell(labels.number(theirs.score) if theirs else "", class_="quiet"),
            number_cell(labels.signed(row.mean.difference) if theirs and score else ""),
        ]
    return el("tr", *parts)


def _spread(row: SelectorRow) -> str:
    score = row.mean.score
    if score is None:
        return ""
    if row.mean.spread:
        return f"\N{PLUS-MINUS SIGN} {labels.number(score.high - score.mean)}"
    return labels.interval(score.low, score.high)


def _minus_own(row: SelectorRow) -> Markup:
    found = row.minus_own
    if found is None:
        return join([""])
    shown = el("strong" if found.excludes_zero else "span", labels.signed(found.mean))
    return join([shown, " ", el("small", labels.interval(found.low, found.high))])
