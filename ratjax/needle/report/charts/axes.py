"""The frame of a chart: scales, grid lines, tick labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ratjax.needle.report.markup import Markup, Number, el, join, rounded


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly to pixels [start, end]; low == high maps to the middle."""

    low: Number
    high: Number
    start: Number
    end: Number

    def __call__(self, value: Number) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Frame:
    """A plot area inside a drawing of `width` x `height`, and the scales of its axes."""

    width: Number
    height: Number
    x: Scale
    y: Scale

    @classmethod
    def of(
        cls,
        width: Number,
        height: Number,
        x: tuple[Number, Number],
        y: tuple[Number, Number],
        margins: tuple[Number, Number, Number, Number] = (10, 14, 24, 30),
    ) -> "Frame":
        """`margins`: top, right, bottom, left."""
        top, right, bottom, left = margins
        return cls(
            width,
            height,
            Scale(*x, left, width - right),
            Scale(*y, height - bottom, top),
        )

    def grid(
        self,
        x_ticks: Sequence[tuple[Number, str]],
        y_ticks: Sequence[tuple[Number, str]],
        y_label: str = "",
        x_label: str = "",
    ) -> Markup:
        """Horizontal grid lines, and the labels of both axes."""
        left, right = self.x.start, self.x.end
        bottom = self.y.start
        parts = []
        for value, text in y_ticks:
            y = self.y(value)
            parts.append(line(left, y, right, y, "grid"))
            if text:
                parts.append(label(left - 5, y + 3.5, text, "end"))
        for value, text in x_ticks:
            x = self.x(value)
            parts.append(line(x, bottom, x, bottom + 3, "tick"))
            parts.append(label(x, bottom + 15, text, "middle"))
        if y_label:
            parts.append(label(left, self.y.end - 8, y_label, "start", "axis"))
        if x_label:
            parts.append(label((left + right) / 2, self.height - 2, x_label, "middle", "axis"))
        return join(parts)

    def svg(self, content: Markup, description: str, name: str = "chart") -> Markup:
        return el(
            "svg",
            content,
            class_=name,
            viewBox=f"0 0 {rounded(self.width)} {rounded(self.height)}",
            role="img",
            aria_label=description,
        )


def line(x1: Number, y1: Number, x2: Number, y2: Number, name: str) -> Markup:
    return el("line", x1=rounded(x1), y1=rounded(y1), x2=rounded(x2), y2=rounded(y2), class_=name)


def label(x: Number, y: Number, text: str, anchor: str, name: str = "") -> Markup:
    return el("text", text, x=rounded(x), y=rounded(y), text_anchor=anchor, class_=name or None)


def path(points: Sequence[tuple[Number, Number]], name: str, close: bool = False) -> Markup:
    """A polyline through the points (pixels)."""
    steps = " ".join(f"{rounded(x)},{rounded(y)}" for x, y in points)
    return el("polygon" if close else "polyline", points=steps, class_=name)


def marker(x: Number, y: Number, position: int, name: str, size: Number = 3.6) -> Markup:
    """A backbone's mark: ring, square, triangle, diamond by its position in the report."""
    shapes = (_ring, _square, _triangle, _diamond)
    return shapes[position % len(shapes)](x, y, size, name)


def _ring(x: Number, y: Number, size: Number, name: str) -> Markup:
    return el(
        "circle", cx=rounded(x), cy=rounded(y), r=rounded(size + 0.4), class_=f"mark ring {name}"
    )


def _square(x: Number, y: Number, size: Number, name: str) -> Markup:
    half = size - 0.6
    return el(
        "rect",
        x=rounded(x - half),
        y=rounded(y - half),
        width=rounded(2 * half),
        height=rounded(2 * half),
        class_=f"mark {name}",
    )


def _triangle(x: Number, y: Number, size: Number, name: str) -> Markup:
    return path([(x - size, y + size), (x + size, y + size), (x, y - size)], f"mark {name}", True)


def _diamond(x: Number, y: Number, size: Number, name: str) -> Markup:
    reach = size + 0.6
    corners = [(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)]
    return path(corners, f"mark {name}", True)


def nice_ticks(low: Number, high: Number, most: int = 5) -> list[Number]:
    """Round numbers covering [low, high], at most about `most` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]
