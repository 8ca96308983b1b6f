"""Training loss curves, one chart a phase."""

from ratjax.needle.report.charts.loss import line_style, loss_chart
from ratjax.needle.report.charts.small import swatch
from ratjax.needle.report.content import Content
from ratjax.needle.report.markup import Markup, el
from ratjax.needle.report.sections.common import note, positions, section


def losses(content: Content) -> Markup | None:
    """None where no metrics were found."""
    if not content.training:
        return None
    places = positions(content)
    phases = sorted({curve.phase for curve in content.training}, key=_phase_order)
    charts = []
    for phase in phases:
        found = [curve for curve in content.training if curve.phase == phase]
        caption = el("figcaption", el("b", phase))
        charts.append(el("figure", caption, loss_chart(found, places), class_="panel"))
    present = {curve.backbone for curve in content.training}
    items = [
        el("li", swatch(place, line_style(place), False), name)
        for name, place in places.items()
        if name in present
    ]
    every = max(curve.every for curve in content.training)
    text = f"Each point averages up to {every} logged steps." if every > 1 else ""
    return section(
        "training",
        "Training loss",
        el("ul", *items, class_="legend"),
        el("div", *charts, class_="panels wide"),
        note(text) if text else None,
    )


def _phase_order(phase: str) -> tuple[bool, str]:
    """Pretraining first, whatever the alphabet says."""
    return ("pretrain" not in phase, phase)
