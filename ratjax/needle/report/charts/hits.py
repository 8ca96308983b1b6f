"""Hit rates of the best heads, by rank: the paper's Figures 2 to 4."""

from collections.abc import Mapping, Sequence

from ratjax.needle.report.charts.axes import Frame, nice_ticks, path
from ratjax.needle.report.hits import HitRates
from ratjax.needle.report.markup import Markup, el, join

DASHES = ("curve", "curve dash1", "curve dash2", "curve dash3")  # budgets, the largest first


def hits_chart(
    cells: Sequence[HitRates], budgets: Sequence[str], positions: Mapping[str, int]
) -> Markup:
    """One task: a line a backbone (its colour) and budget (its dashes)."""
    longest = max(len(cell.top) for cell in cells)
    floor = min(0.95, *(min(cell.top) for cell in cells))
    frame = Frame.of(320, 200, x=(1, longest), y=(floor, 1.0), margins=(22, 14, 36, 38))
    y_ticks = [(v, f"{v:g}") for v in (round(v, 4) for v in nice_ticks(floor, 1.0, 4))]
    x_ticks = [(v, str(round(v))) for v in (1, *nice_ticks(2, longest, 4))]
    layers = [frame.grid(x_ticks, y_ticks, "hit rate", "head, by rank")]
    for cell in cells:
        spots = [(frame.x(i), frame.y(rate)) for i, rate in enumerate(cell.top, start=1)]
        style = DASHES[budgets.index(cell.setting.budget) % len(DASHES)]
        name = f"{cell.backbone}, {cell.setting.budget}"
        colour = f"b{positions[cell.backbone] % 4}"
        layers.append(el("g", el("title", name), path(spots, f"{style} {colour}")))
    return frame.svg(join(layers), _description(cells))


def _description(cells: Sequence[HitRates]) -> str:
    parts = [
        f"{cell.backbone} at {cell.setting.budget}: from {cell.top[0]:.2f} to {cell.top[-1]:.2f}"
        for cell in cells
    ]
    return "Hit rates of the best heads. " + "; ".join(parts)
