"""Drawings that fit a line of text: legend swatches and the headline's dumbbells."""

from collections.abc import Mapping, Sequence

from ratjax.needle.report.charts.axes import Scale, line, marker
from ratjax.needle.report.markup import Markup, el


def swatch(position: int | str | None, style: str = "curve", marked: bool = True) -> Markup:
    """A legend's sample of a line: a backbone's by its position, None the grey of the paper's
    numbers, "ink" what stands for every colour (unmarked).

    Args:
        style: the line's classes: "curve", "curve dashed", "dense", "loss", "loss dashed".
        marked: whether the backbone's marker sits on it.
    """
    place = position if isinstance(position, int) else 0
    name = f"b{place % 4}" if isinstance(position, int) else position or "ghost"
    stroke = line(1, 8, 29, 8, f"{style} {name}")
    faded = f"{name} dashed" if "dashed" in style else name
    mark = marker(15, 8, place, faded) if marked else ""
    return el("svg", stroke, mark, class_="swatch", viewBox="0 0 30 16", aria_hidden="true")


def dumbbell(scores: Sequence[tuple[str, float]], positions: Mapping[str, int]) -> Markup:
    """The backbones' scores (0 to 100) on one line, a bar between the ends."""
    scale = Scale(0, 100, 6, 154)
    spots = [scale(score) for _, score in scores]
    frame = [
        line(6, 8, 154, 8, "grid"),
        *(line(scale(v), 5, scale(v), 11, "grid") for v in (0, 50, 100)),
    ]
    bar = line(min(spots), 8, max(spots), 8, "bar") if spots else ""
    marks = [
        marker(spot, 8, positions[name], f"b{positions[name] % 4}")
        for spot, (name, _) in zip(spots, scores, strict=True)
    ]
    return el(
        "svg", *frame, bar, *marks, class_="dumbbell", viewBox="0 0 160 16", aria_hidden="true"
    )
