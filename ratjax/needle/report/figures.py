"""PNG figures for a README or a talk: the same curves as the page, drawn by matplotlib."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ratjax.needle.report import labels, paper
from ratjax.needle.report.content import Content
from ratjax.needle.report.curves import Curve, Panel, Variant, variants
from ratjax.needle.report.summary import group_label

# The page's light palette, markers in the same order.
_COLOURS = ("#c95400", "#0068aa", "#008060", "#a03e7e")
_MARKERS = ("o", "s", "^", "D")
_QUIET, _RULE, _GHOST = "#5a626d", "#dddfdc", "#9aa0a6"
_RESOLUTION = 160
_PALE = 0.5


def draw_figures(content: Content, folder: Path) -> list[str]:
    """Writes curves_mean.png and curves.png of the first group with sparse settings.

    Returns:
        The names written; none where no sparse setting was evaluated.
    """
    for group in content.groups:
        found = variants(group)
        if not found:
            continue
        places = {backbone: place for place, backbone in enumerate(content.backbones)}
        checkpoints = content.reference or next(iter(paper.CHECKPOINTS))
        title = f"Strict score by budget, {group_label(group)}"
        averages = [[(v, v.average, v.label) for v in found]]
        tasks = [[(v, panel, panel.title) for panel in v.panels] for v in found]
        _grid(averages, places, checkpoints, title, 3.2, 2.7, folder / "curves_mean.png")
        _grid(tasks, places, checkpoints, title, 1.75, 1.75, folder / "curves.png")
        return ["curves_mean.png", "curves.png"]
    return []


def _grid(
    rows: Sequence[Sequence[tuple[Variant, Panel, str]]],
    places: Mapping[str, int],
    checkpoints: str,
    title: str,
    width: float,
    height: float,
    path: Path,
) -> None:
    columns = max(len(row) for row in rows)
    size = (max(6.4, width * columns + 0.6), height * len(rows) + 0.9)
    figure = Figure(figsize=size)
    # By hand: matplotlib's own layout of so many panels takes seconds.
    figure.subplots_adjust(
        left=0.55 / size[0],
        right=1 - 0.15 / size[0],
        top=1 - 0.6 / size[1],
        bottom=0.75 / size[1],
        wspace=0.12,
        hspace=0.38,
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False, sharey=True)
    for line, row in zip(axes, rows, strict=True):
        for ax in line[len(row) :]:
            ax.set_visible(False)
        for ax, (variant, panel, name) in zip(line, row, strict=False):
            _panel(ax, variant, panel, places, checkpoints)
            ax.set_title(name, fontsize=9)
        line[0].set_ylabel(row[0][0].label if len(rows) > 1 else "strict score", fontsize=9)
    shown = [panel for row in rows for _, panel, _ in row]
    figure.suptitle(title, fontsize=10)
    handles = _handles(shown, places, checkpoints)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=len(handles) if len(handles) <= size[0] / 1.7 else 3,
        fontsize=8,
        frameon=False,
    )
    # Without the version of matplotlib inside, equal data gives equal bytes.
    figure.savefig(path, dpi=_RESOLUTION, facecolor="white", metadata={"Software": None})


def _panel(
    ax: Axes, variant: Variant, panel: Panel, places: Mapping[str, int], checkpoints: str
) -> None:
    for backbone, score in panel.dense:
        ax.axhline(score.mean, color=_COLOURS[places[backbone] % 4], lw=1, ls=":")
    for curve in panel.curves:
        if curve.checkpoints in (None, checkpoints):
            _curve(ax, curve, places[curve.backbone] % 4)
    spots = [math.log2(Fraction(b)) for b in variant.budgets]
    ax.set_xticks(spots, variant.budgets, fontsize=8)
    ax.set_xlim(spots[0] - 0.4, spots[-1] + 0.4)
    ax.set_ylim(-4, 104)
    ax.set_yticks([0, 50, 100], ["0", "50", "100"], fontsize=8)
    ax.grid(axis="y", color=_RULE, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(length=0, colors=_QUIET)


def _curve(ax: Axes, curve: Curve, place: int) -> None:
    x = [math.log2(point.setting.fraction) for point in curve.points]
    scores = [point.score for point in curve.points]
    y = [score.mean for score in scores]
    if curve.checkpoints is not None:
        ax.plot(x, y, color=_GHOST, lw=0.8, ls=":", marker=_MARKERS[place], ms=3, mfc="white")
        return
    # Other selectors are paler too: at a single budget there is no line to be dashed.
    style, alpha = ("-", 1.0) if curve.selector == "original" else ("--", _PALE)
    face = "white" if place == 0 else _COLOURS[place]
    low, high = [max(0.0, s.low) for s in scores], [min(100.0, s.high) for s in scores]
    colour = _COLOURS[place]
    if len(x) > 1:
        ax.fill_between(x, low, high, color=colour, alpha=0.13 * alpha, lw=0)
    else:
        ax.vlines(x, low, high, color=colour, lw=1.2, alpha=alpha)
    marks = {"marker": _MARKERS[place], "ms": 4.5, "mfc": face}
    ax.plot(x, y, color=colour, lw=1.6, ls=style, alpha=alpha, **marks)


def _handles(panels: Sequence[Panel], places: Mapping[str, int], checkpoints: str) -> list[Line2D]:
    curves = [curve for panel in panels for curve in panel.curves]
    handles = []
    for backbone, place in places.items():
        colour, marker = _COLOURS[place % 4], _MARKERS[place % 4]
        face = "white" if place == 0 else colour
        handles.append(Line2D([], [], color=colour, marker=marker, mfc=face, label=backbone))
    if any(panel.dense for panel in panels):
        handles.append(Line2D([], [], color=_QUIET, ls=":", label="dense"))
    for selector in dict.fromkeys(curve.selector for curve in curves):
        if selector != "original":
            name = f"{labels.selector_name(selector)} (pale)"
            handles.append(
                Line2D([], [], color=_QUIET, ls="--", marker="o", alpha=_PALE, label=name)
            )
    if any(curve.checkpoints == checkpoints for curve in curves):
        name = f"paper, {paper.CHECKPOINTS[checkpoints]}, {paper.CONTEXT_LENGTH} tokens"
        handles.append(Line2D([], [], color=_GHOST, ls=":", marker="o", mfc="white", label=name))
    return handles
