"""Training loss by step, one chart a phase."""

from collections.abc import Mapping, Sequence

from ratjax.needle.report import labels
from ratjax.needle.report.charts.axes import Frame, nice_ticks, path
from ratjax.needle.report.markup import Markup, el, join
from ratjax.needle.report.training import LossCurve


def loss_chart(curves: Sequence[LossCurve], positions: Mapping[str, int]) -> Markup:
    """The curves of one phase; a training without a known backbone is drawn grey."""
    steps = [step for curve in curves for step in curve.steps]
    losses = [loss for curve in curves for loss in curve.losses]
    top = max(losses) * 1.05 or 1.0
    floor = min(0.0, min(losses))
    frame = Frame.of(360, 220, x=(min(steps), max(steps)), y=(floor, top), margins=(22, 14, 36, 38))
    x_ticks = [(v, labels.count(round(v))) for v in nice_ticks(min(steps), max(steps), 4)]
    y_ticks = [(v, f"{v:g}") for v in nice_ticks(floor, top)]
    layers = [frame.grid(x_ticks, y_ticks, "loss (nats a token)", "step")]
    for curve in curves:
        spots = [(frame.x(s), frame.y(v)) for s, v in zip(curve.steps, curve.losses, strict=True)]
        position = positions.get(curve.backbone or "")
        style = "ghost" if position is None else f"b{position % 4}"
        layers.append(
            el(
                "g",
                el("title", curve.backbone or curve.phase),
                path(spots, f"{line_style(position)} {style}"),
            )
        )
    return frame.svg(join(layers), _description(curves))


def line_style(position: int | None) -> str:
    """A loss curve has no markers, so every other backbone's is dashed: not colour alone."""
    return "loss" if position is None or position % 2 else "loss dashed"


def _description(curves: Sequence[LossCurve]) -> str:
    parts = [
        f"{c.backbone or 'training'}: from {c.losses[0]:.3g} at step {c.steps[0]:.0f} "
        f"to {c.losses[-1]:.3g} at step {c.steps[-1]:.0f}"
        for c in curves
    ]
    return f"Training loss, {curves[0].phase}. {'; '.join(parts)}."
