"""Score against cost, or against speed: which method buys most."""

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
    """One method: (cost or speed, above 0; mean score), the leftmost first."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Axis:
    """What stands below a front: a scale of doublings from 2^low to 2^high, `text` its name.

    Methods are named where they are cheapest: at the left end of reads, at the right of speeds.
    """

    text: str
    low: int
    high: int
    names_left: bool

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(float(e), labels.budget(f"{2.0**e}")) for e in range(self.low, self.high + 1)]


def reads(lines: Sequence[FrontLine]) -> Axis:
    """The axis of shares of keys and values read, up to all of them."""
    least = min(share for entry in lines for share, _ in entry.points)
    return Axis("keys and values read (measured)", math.floor(math.log2(least)), 0, True)


def speeds(lines: Sequence[FrontLine]) -> Axis:
    """The axis of tokens decoded a second, in multiples of dense decoding."""
    values = [speed for entry in lines for speed, _ in entry.points]
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    name = "tokens decoded a second, times dense (measured)"
    return Axis(name, min(low, 0), max(high, 1), False)


def front_chart(title: str, axis: Axis, lines: Sequence[FrontLine], dense: float | None) -> Markup:
    """The methods of one backbone; each has its own marker and its name at the cheap end."""
    # Room for the names: a third of the axis beyond its end.
    room = max(1, axis.high - axis.low) / 3
    left, right = (room, 0.2) if axis.names_left else (0.1, room)
    ends = (axis.low - left, axis.high + right)
    frame = Frame.of(400, 250, x=ends, y=(0, 100), margins=(22, 14, 38, 30))
    layers = [frame.grid(axis.ticks, _SCORES, "mean strict score", axis.text)]
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
    named = 0 if axis.names_left else -1
    heights = spread([spots[named][1] + 3.5 for spots in drawn], _LINE_HEIGHT)
    # On the right in one column, behind the last point of all.
    column = max(spots[-1][0] for spots in drawn) + 10
    for position, (entry, spots, y) in enumerate(zip(lines, drawn, heights, strict=True)):
        marks = [marker(x, spot, position, "ink") for x, spot in spots]
        stroke = path(spots, f"curve ink dash{position % 4}") if len(spots) > 1 else ""
        name = (
            label(spots[0][0] - 8, y, entry.label, "end", "name")
            if axis.names_left
            else label(column, y, entry.label, "start", "name")
        )
        layers.append(el("g", stroke, *marks, name))
    return frame.svg(join(layers), _description(title, axis, lines))


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


def _description(title: str, axis: Axis, lines: Sequence[FrontLine]) -> str:
    parts = [
        f"{entry.label}: " + ", ".join(f"{labels.number(y)} at {x:.3g}" for x, y in entry.points)
        for entry in lines
    ]
    return f"{title}: mean strict score by {axis.text}. {'; '.join(parts)}."
