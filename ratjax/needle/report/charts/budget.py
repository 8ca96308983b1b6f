"""Score against budget, as inline SVG: one chart a task, drawn on the server."""

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ratjax.needle.report import labels, paper
from ratjax.needle.report.charts.axes import Frame, line, marker, path
from ratjax.needle.report.curves import Curve, Panel
from ratjax.needle.report.markup import Markup, el, join, rounded

_SCORES = [(0.0, "0"), (25.0, ""), (50.0, "50"), (75.0, ""), (100.0, "100")]


def budget_chart(
    panel: Panel, budgets: Sequence[str], positions: Mapping[str, int], large: bool = False
) -> Markup:
    """One panel.

    Args:
        budgets: the ticks, ascending, as fractions in text.
        positions: backbone -> its place in the report, which is its colour and marker.
        large: a wider drawing with room for the names of the dense lines.
    """
    spots = [math.log2(Fraction(b)) for b in budgets]
    pad = 0.35 if len(spots) > 1 else 1.0
    frame = Frame.of(
        360 if large else 260,
        230 if large else 172,
        x=(spots[0] - pad, spots[-1] + pad),
        y=(0, 100),
        margins=(10, 10, 24, 30),
    )
    ticks = list(zip(spots, budgets, strict=True))
    layers = [frame.grid(ticks, _SCORES)]
    ours = [c for c in panel.curves if c.checkpoints is None]
    layers += [_paper_curve(frame, c, positions) for c in panel.curves if c.checkpoints]
    layers += [_dense(frame, score.mean, positions[b]) for b, score in panel.dense]
    layers += [_band(frame, c, positions) for c in ours]
    layers += [_curve(frame, c, positions) for c in ours]
    layers += [_column(frame, panel, spot, b, spots) for spot, b in ticks]
    return frame.svg(join(layers), _description(panel, budgets))


def _place(frame: Frame, curve: Curve) -> list[tuple[float, float]]:
    return [(frame.x(math.log2(p.setting.fraction)), frame.y(p.score.mean)) for p in curve.points]


def _style(curve: Curve, positions: Mapping[str, int]) -> str:
    dashed = "" if curve.selector == "original" else " dashed"
    return f"b{positions[curve.backbone] % 4}{dashed}"


def _curve(frame: Frame, curve: Curve, positions: Mapping[str, int]) -> Markup:
    spots = _place(frame, curve)
    style = _style(curve, positions)
    position = positions[curve.backbone]
    marks = [marker(x, y, position, style) for x, y in spots]
    stroke = path(spots, f"curve {style}") if len(spots) > 1 else ""
    return el("g", stroke, *marks)


def _band(frame: Frame, curve: Curve, positions: Mapping[str, int]) -> Markup:
    """The interval: an area where there is a line, a whisker where there is one point."""
    style = _style(curve, positions)
    ends = [
        (
            frame.x(math.log2(p.setting.fraction)),
            frame.y(max(0.0, p.score.low)),  # a deviation from a mean of 99 may reach beyond 100
            frame.y(min(100.0, p.score.high)),
        )
        for p in curve.points
    ]
    if len(ends) == 1:
        ((x, low, high),) = ends
        return line(x, low, x, high, f"whisker {style}")
    upper = [(x, high) for x, _, high in ends]
    lower = [(x, low) for x, low, _ in reversed(ends)]
    return path(upper + lower, f"band {style}", close=True)


def _paper_curve(frame: Frame, curve: Curve, positions: Mapping[str, int]) -> Markup:
    spots = _place(frame, curve)
    position = positions[curve.backbone]
    marks = [marker(x, y, position, "ghost", 3.0) for x, y in spots]
    stroke = path(spots, "curve ghost") if len(spots) > 1 else ""
    return el("g", stroke, *marks, class_=f"paper paper-{curve.checkpoints}")


def _dense(frame: Frame, score: float, position: int) -> Markup:
    y = frame.y(score)
    return line(frame.x.start, y, frame.x.end, y, f"dense b{position % 4}")


def _column(frame: Frame, panel: Panel, spot: float, budget: str, spots: Sequence[float]) -> Markup:
    """An invisible column over a budget that carries its numbers as a tooltip."""
    gap = min((b - a for a, b in itertools.pairwise(spots)), default=2.0)
    left = max(frame.x.start, frame.x(spot - gap / 2))
    right = min(frame.x.end, frame.x(spot + gap / 2))
    return el(
        "rect",
        el("title", "\n".join(_tip(panel, budget))),
        x=rounded(left),
        y=rounded(frame.y.end),
        width=rounded(right - left),
        height=rounded(frame.y.start - frame.y.end),
        class_="hit",
    )


def _tip(panel: Panel, budget: str) -> list[str]:
    lines = [f"{panel.title} at {budget}"]
    theirs: dict[str, list[str]] = {}
    for curve in panel.curves:
        for point in curve.points:
            if labels.budget(point.setting.budget) != budget:
                continue
            name = curve.backbone + labels.selector_suffix(curve.selector)
            value = labels.number(point.score.mean)
            if curve.checkpoints is None:
                lines.append(
                    f"{name}: {value} {labels.interval(point.score.low, point.score.high)}"
                )
            else:
                theirs.setdefault(curve.checkpoints, []).append(f"{name} {value}")
    lines += [f"{backbone}, dense: {labels.number(s.mean)}" for backbone, s in panel.dense]
    for checkpoints, values in theirs.items():
        lines.append(f"paper, {paper.CHECKPOINTS[checkpoints]}: {', '.join(values)}")
    return lines


def _description(panel: Panel, budgets: Sequence[str]) -> str:
    """What a screen reader says in place of the drawing."""
    parts = []
    for curve in panel.curves:
        if curve.checkpoints is None:
            values = ", ".join(
                f"{labels.number(p.score.mean)} at {labels.budget(p.setting.budget)}"
                for p in curve.points
            )
            parts.append(f"{curve.backbone}{labels.selector_suffix(curve.selector)}: {values}")
    parts += [f"{backbone} dense: {labels.number(s.mean)}" for backbone, s in panel.dense]
    return f"{panel.title}, strict score by budget. {'; '.join(parts)}."
