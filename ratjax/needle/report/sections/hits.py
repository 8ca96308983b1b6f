"""Does a head's selection hold what the answer is copied from, and does it matter?"""

from collections.abc import Sequence
from fractions import Fraction

from ratjax.needle.report import labels
from ratjax.needle.report.charts.hits import DASHES, hits_chart
from ratjax.needle.report.charts.small import swatch
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.hits import HitRates, together
from ratjax.needle.report.markup import Child, Markup, el
from ratjax.needle.report.sections.common import (
    group_heading,
    head,
    note,
    number_cell,
    positions,
    scrolling,
    section,
)

_TEXT = (
    "A head hits a prompt where its selection holds every position that the answer is copied from, "
    "at every decoding step; the answer is teacher-forced and counted from its second token. Heads "
    "are ranked for each line by itself. Given a hit or a miss: the mean score of the prompts that "
    "at least one, or none, of the best heads hit (the best 50 of 1024 heads or more, and the same "
    "share of fewer)."
)


def hits(content: Content) -> Markup | None:
    """None where no run has hit rates."""
    cells = [cell for cell in content.hits if cell.backbone in content.backbones]
    if not cells:
        return None
    parts: list[Child] = []
    for group in content.groups:
        of_group = [cell for cell in cells if _belongs(cell, group)]
        if of_group:
            parts += [group_heading(content, group), *_of_group(content, of_group)]
    return section("hits", "Selections that hold the answer", *parts, note(_TEXT))


def _belongs(cell: HitRates, group: Group) -> bool:
    return cell.context_length == group.context_length and group.run in (None, cell.run)


def _of_group(content: Content, cells: Sequence[HitRates]) -> list[Child]:
    parts: list[Child] = []
    for kind in dict.fromkeys(labels.variant(cell.setting) for cell in cells):
        of_kind = [cell for cell in cells if labels.variant(cell.setting) == kind]
        parts += [el("h3", kind), _legend(content, of_kind), _panels(content, of_kind)]
    return [*parts, _table(cells)]


def _budgets(cells: Sequence[HitRates]) -> list[str]:
    return sorted({cell.setting.budget for cell in cells}, key=Fraction, reverse=True)


def _legend(content: Content, cells: Sequence[HitRates]) -> Markup:
    places = positions(content)
    present = {cell.backbone for cell in cells}
    items = [
        el("li", swatch(place, "curve", False), name)
        for name, place in places.items()
        if name in present
    ]
    for style, budget in zip(DASHES, _budgets(cells), strict=False):
        items.append(el("li", swatch("ink", style, False), f"{budget}, in either colour"))
    return el("ul", *items, class_="legend")


def _panels(content: Content, cells: Sequence[HitRates]) -> Markup:
    places, budgets = positions(content), _budgets(cells)
    charts = []
    for task in sorted({cell.task for cell in cells}, key=labels.task_order):
        own = [c for c in cells if c.task == task and c.setting.selector == "original"]
        if own:
            caption = el("figcaption", el("b", labels.task(task)), " ", labels.task_note(task))
            charts.append(el("figure", caption, hits_chart(own, budgets, places), class_="panel"))
    return el("div", *charts, class_="panels wide")


def _table(cells: Sequence[HitRates]) -> Markup:
    columns: list[Child] = ["Setting", "Backbone", "Best head", "Missed by the best heads"]
    columns += ["Score given a hit", "Score given a miss"]
    several = len({(c.setting.method, c.setting.block_size) for c in cells}) > 1
    rows = []
    for setting, backbone in dict.fromkeys((c.setting, c.backbone) for c in cells):
        own = [c for c in cells if (c.setting, c.backbone) == (setting, backbone)]
        hit, miss = (together([getattr(c, which) for c in own]) for which in _WHICH)
        best = sum(max(c.top) for c in own) / len(own)
        rows.append(
            el(
                "tr",
                el("th", labels.setting(setting, several), scope="row"),
                el("td", backbone),
                number_cell(labels.percent(best)),
                number_cell(labels.percent(miss.prompts / (hit.prompts + miss.prompts))),
                number_cell(labels.number(hit.score)),
                number_cell(labels.number(miss.score)),
            )
        )
    return scrolling(el("table", head(columns), el("tbody", *rows)), "Hits and scores")


_WHICH = ("given_hit", "given_miss")
