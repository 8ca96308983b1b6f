"""Score against the share of keys and values really read: which method buys most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ratjax.needle.report import labels
from ratjax.needle.report.charts.axes import Frame, label, line, marker, path
from ratjax.needle.report.markup import Markup, el, join

_SCORES = [(0.0, "0"), (25.0, ""), (50.0, "50"), (75.0, ""), (100.0, "100")]
_LINE_HEIGHT = 12.0


@dataclass(frozen=True)
class FrontLine:
    """One method: (share of keys and values read in (0, 1], mean score) from its cheapest up."""

    label: str
    points: tuple[tuple[float, float], ...]


def front_chart(title: str, lines: Sequence[FrontLine], dense: float | None) -> Markup:
    """The methods of one backbone; each has its own marker and its name at the cheap end."""
    shares = [share for entry in lines for share, _ in entry.points]
    low = math.floor(math.log2(min(shares)))
    frame = Frame.of(400, 250, x=(low - 1.5, 0.2), y=(0, 100), margins=(22, 14, 38, 30))
    ticks = [(float(e), labels.budget(f"1/{2**-e}")) for e in range(low, 1)]
    layers = [frame.grid(ticks, _SCORES, "mean strict score", "keys and values read (measured)")]
    if dense is not None:
        y = frame.y(dense)
        layers += [
            line(frame.x.start, y, frame.x.end, y, "dense ink"),
            label(frame.x.end, y - 4, "dense", "end", "axis"),
        ]
    drawn = [
        [(frame.x(math.log2(share)), frame.y(score)) for share, score in entry.points]
        for entry in lines
    ]
    heights = spread([spots[0][1] + 3.5 for spots in drawn], _LINE_HEIGHT)
    for position, (entry, spots, y) in enumerate(zip(lines, drawn, heights, strict=True)):
        marks = [marker(x, spot, position, "ink") for x, spot in spots]
        stroke = path(spots, f"curve ink dash{position % 4}") if len(spots) > 1 else ""
        name = label(spots[0][0] - 8, y, entry.label, "end", "name")
        layers.append(el("g", stroke, *marks, name))
    return frame.svg(join(layers), _description(title, lines))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves labels apart until neighbours are `gap` from each other, each group staying centred
    on where its members wanted to be."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    clusters: list[list[int]] = []
    for index in order:
        clusters.append([index])
        while len(clusters) > 1 and _start(clusters[-1], heights, gap) < (
            _start(clusters[-2], heights, gap) + gap * len(clusters[-2])
        ):
            last = clusters.pop()
            clusters[-1] += last
    placed = [0.0] * len(heights)
    for cluster in clusters:
        for rank, index in enumerate(cluster):
            placed[index] = _start(cluster, heights, gap) + gap * rank
    return placed


def _start(cluster: Sequence[int], heights: Sequence[float], gap: float) -> float:
    centre = math.fsum(heights[i] for i in cluster) / len(cluster)
    return centre - gap * (len(cluster) - 1) / 2


def _description(title: str, lines: Sequence[FrontLine]) -> str:
    parts = [
        f"{entry.label}: "
        + ", ".join(f"{labels.number(y)} reading {100 * x:.0f} %" for x, y in entry.points)
        for entry in lines
    ]
    return f"{title}: mean strict score by share of keys and values read. {'; '.join(parts)}."
