"""Accuracy against budget: the mean of the tasks, then every task, method by method."""

from collections.abc import Sequence

from ratjax.needle.report import labels, paper
from ratjax.needle.report.charts.budget import budget_chart
from ratjax.needle.report.charts.small import swatch
from ratjax.needle.report.content import Content
from ratjax.needle.report.curves import Panel, Variant, selectors, variants
from ratjax.needle.report.markup import Child, Markup, el, join
from ratjax.needle.report.sections.common import group_heading, note, positions, section


def curves(content: Content) -> Markup | None:
    """None where no sparse setting was evaluated."""
    shown = [(number, group, variants(group)) for number, group in enumerate(content.groups)]
    shown = [entry for entry in shown if entry[2]]
    if not shown:
        return None
    has_paper = any(
        curve.checkpoints
        for _, _, found in shown
        for v in found
        for panel in (v.average, *v.panels)
        for curve in panel.curves
    )
    parts: list[Child] = [_paper_choice(content) if has_paper else None, _legend(content)]
    for number, group, found in shown:
        parts += [
            group_heading(content, group),
            _averages(content, found),
            _tabs(content, found, number),
        ]
    return section("curves", "Score against budget", *parts, _explanation(content, has_paper))


def _paper_choice(content: Content) -> Markup:
    """Radio buttons that CSS alone reads: they work without scripts."""
    chosen = content.reference or next(iter(paper.CHECKPOINTS))
    options = [(key, name) for key, name in paper.CHECKPOINTS.items()] + [("none", "none")]
    buttons = [
        join(
            [
                el(
                    "input",
                    type="radio",
                    name="paper",
                    id=f"show-{key}",
                    checked=key == chosen,
                ),
                el("label", name, for_=f"show-{key}"),
            ]
        )
        for key, name in options
    ]
    legend = el("legend", "Paper's numbers (other models, 4096 tokens)")
    if content.reference is not None:
        legend = el("legend", "Paper's numbers")
    return el("fieldset", legend, *buttons, class_="choice")


def _legend(content: Content) -> Markup:
    items = [(swatch(place), name) for name, place in positions(content).items()]
    items += [
        (swatch(place, "dense", False), f"{name}, dense")
        for name, place in positions(content).items()
    ]
    for selector in selectors(r.setting for r in content.results):
        if selector != "original":
            items.append(
                (swatch(0, "curve dashed"), f"dashed and pale: {labels.selector_name(selector)}")
            )
    items.append((swatch(None), "the paper's (same marks, grey)"))
    entries = [el("li", image, text) for image, text in items]
    return el("ul", *entries, class_="legend")


def _averages(content: Content, found: Sequence[Variant]) -> Markup:
    charts = [_figure(content, v, v.average, v.label, labels.method_note(v.method)) for v in found]
    return el("div", *charts, class_="panels wide")


def _tabs(content: Content, found: Sequence[Variant], number: int) -> Markup:
    parts: list[Child] = []
    name = f"method-{number}"
    for place, variant in enumerate(found):
        key = f"{name}-{place}"
        parts += [
            el("input", type="radio", name=name, id=key, checked=place == 0),
            el("label", variant.label, for_=key),
        ]
    for variant in found:
        charts = [_figure(content, variant, p, p.title, p.note) for p in variant.panels]
        heading = el("h4", variant.label, ", task by task")
        parts.append(el("div", heading, el("div", *charts, class_="panels"), class_="tabpanel"))
    return el("div", *parts, class_="tabs", role="group", aria_label="Method shown task by task")


def _figure(content: Content, variant: Variant, panel: Panel, title: str, text: str) -> Markup:
    chart = budget_chart(panel, variant.budgets, positions(content), panel is variant.average)
    caption = el("figcaption", el("b", title), " ", el("span", text))
    return el("figure", caption, chart, class_="panel")


def _explanation(content: Content, has_paper: bool) -> Markup:
    spread = any(group.has_replicates for group in content.groups)
    text = "Bands are 95 % intervals over prompts"
    if spread:
        text += ", or one standard deviation over seeds to either side where there are several"
    text += (
        ". Budget is the share of the context's keys and values that a query may read. "
        "Point at a chart for its numbers; all of them stand in the table of cells below."
    )
    if has_paper:
        text += f" Grey: {paper.source()}."
    return note(text)
