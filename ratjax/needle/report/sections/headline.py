"""The first table: method x budget, each backbone's mean score and their paired difference."""

from ratjax.needle.report import labels
from ratjax.needle.report.charts.small import dumbbell, swatch
from ratjax.needle.report.compare import Comparison, Difference, dense_gap
from ratjax.needle.report.content import Content
from ratjax.needle.report.grid import Group
from ratjax.needle.report.markup import Child, Markup, el
from ratjax.needle.report.records import Setting
from ratjax.needle.report.sections.common import (
    group_heading,
    head,
    note,
    number_cell,
    positions,
    scrolling,
    section,
)
from ratjax.needle.statistics import Estimate


def headline(content: Content) -> Markup:
    parts: list[Child] = []
    for group, comparisons in zip(content.groups, content.comparisons, strict=True):
        parts += [group_heading(content, group), _table(content, group, comparisons)]
    return section("headline", "Mean score by method and budget", *parts, _explanation(content))


def _table(content: Content, group: Group, comparisons: tuple[Comparison, ...]) -> Markup:
    places = positions(content)
    columns: list[Child] = ["Method", "Budget", "Keeps"]
    columns += [el("span", swatch(places[b]), b, data_swatch=b) for b in group.backbones]
    for comparison in comparisons:
        columns.append(f"{comparison.other} minus {comparison.baseline} [95 %]")
        columns += ["net of the dense gap [95 %]"] if len(comparisons) == 1 else []
    columns += ["0 to 100"] if _pictured(comparisons) else []
    rows = [_row(group, s, comparisons, places) for s in _shown(group)]
    table = el(
        "table",
        head(columns),
        el("tbody", *rows),
        class_="headline pictured" if _pictured(comparisons) else "headline",
    )
    return scrolling(table, "Mean score by method and budget")


def _pictured(comparisons: tuple[Comparison, ...]) -> bool:
    """Whether the row has room for its scores drawn on a line."""
    return len(comparisons) <= 1


def _shown(group: Group) -> list[Setting]:
    """Other selectors than the methods' own have a section of their own."""
    return [s for s in group.settings if s.is_dense or s in group.main_settings]


def _row(
    group: Group, setting: Setting, comparisons: tuple[Comparison, ...], places: dict[str, int]
) -> Markup:
    scores = [(b, group.average(b, setting)) for b in group.backbones]
    cells: list[Child] = [
        el("th", *_name(group, setting), scope="row"),
        el("td", labels.budget(setting.budget)),
        el("td", labels.kept(setting), class_="quiet"),
    ]
    for backbone, score in scores:
        gap = None if setting.is_dense else dense_gap(group, backbone, setting)
        loss = el("small", labels.signed(gap)) if gap is not None else None
        shown = (
            labels.number(score.mean)
            if score is not None
            else _incomplete(group, backbone, setting)
        )
        cells.append(number_cell(shown, " ", loss, class_="score"))
    for comparison in comparisons:
        difference = comparison.averages.get(setting)
        cells.append(_difference(difference))
        cells += [_net(difference)] if len(comparisons) == 1 else []
    known = [(b, score.mean) for b, score in scores if score is not None]
    if _pictured(comparisons):
        cells.append(el("td", dumbbell(known, places), class_="picture"))
    return el("tr", *cells, class_="reference" if setting.is_dense else None)


def _name(group: Group, setting: Setting) -> list[Child]:
    """The method; its block size shows only where the column that tells it is left out."""
    blocks = None
    if group.blocks_matter(setting):
        suffix = labels.variant(setting).removeprefix(labels.method(setting.method))
        blocks = el("span", suffix, class_="blocks")
    return [labels.method(setting.method), blocks, labels.selector_suffix(setting.selector)]


def _incomplete(group: Group, backbone: str, setting: Setting) -> str:
    found = len(group.of_setting(backbone, setting))
    return f"{found} of {len(group.tasks)} tasks" if found else labels.DASH


def _difference(difference: Difference | None) -> Markup:
    if difference is None:
        return number_cell(labels.DASH)
    estimate = difference.interval
    if estimate is None:
        return number_cell(labels.signed(difference.points))
    return number_cell(*_with_interval(difference.points, estimate))


def _net(difference: Difference | None) -> Markup:
    if difference is None or difference.net_of_dense is None:
        return number_cell("")
    return number_cell(*_with_interval(difference.net_of_dense.mean, difference.net_of_dense))


def _with_interval(points: float, estimate: Estimate) -> list[Child]:
    name = "strong" if estimate.excludes_zero else "span"
    ends = labels.interval(estimate.low, estimate.high)
    return [el(name, labels.signed(points)), " ", el("small", ends)]


def _explanation(content: Content) -> Markup:
    text = (
        "Scores are strict set matches in percent, averaged over the tasks; beside a score stands "
        "its change from the same backbone's dense score. "
    )
    found = [comparison for group in content.comparisons for comparison in group]
    if found:
        how = (
            "takes seeds and prompts for random effects"
            if any(comparison.seeds > 1 for comparison in found)
            else "comes from resampling them"
        )
        text += (
            "Differences are paired: both backbones answer the same prompts, and the interval "
            f"{how}; bold where it leaves out zero (each row judged by itself). "
            "Net: less the difference of the dense scores."
        )
    return note(text)
