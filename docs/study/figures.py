"""The study's figures."""

import pathlib
from collections.abc import Callable

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from docs.study.study import ARMS, NOT_RUN, Study
from ratjax.needle.report.compare import compare
from ratjax.needle.report.figures import draw_figures

COLOURS = dict(zip(ARMS, ("#c95400", "#0068aa", "#008060", "#a03e7e"), strict=True))  # the report's
STYLES = dict(zip(ARMS, ("-", "-", "--", "-"), strict=True))


def draw(study: Study, folder: pathlib.Path) -> list[str]:
    """Writes what there are runs for; returns the names."""
    names = []
    group = study.group()
    if group is not None and group.sparse_settings:
        content = study.content(group, compare(group, study.predictions))
        names += draw_figures(content, folder)
    if study.runs:
        names.append(_losses(study, folder / "losses.svg"))
    return names


def _losses(study: Study, path: pathlib.Path) -> str:
    """Training loss and held-out text by step, a panel a list of runs and quantity."""
    kinds = [kind for kind in ("tuning", "main") if study.of(kind)]
    figure = Figure(figsize=(9, 3.2 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), 2, squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for ax, (field, title) in zip(
            row, (("loss", "training loss"), ("held_out", "held-out text")), strict=True
        ):
            for run in study.of(kind):
                points = run.meta["training"][field]
                if points:
                    colour, style = COLOURS[run.arm], STYLES[run.arm]
                    label = run.arm if run is study.of(kind, run.arm)[0] else None
                    ax.plot(*zip(*points, strict=True), style, color=colour, lw=1, label=label)
            ax.set_title(f"{kind}: {title}", fontsize=9)
            ax.set_xlabel("step", fontsize=8)
            ax.set_ylabel("nats a token", fontsize=8)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].legend(fontsize=8, frameon=False)
    # Without date and random names, equal data gives equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(path, metadata={"Date": None})
    return path.name


def _shown(
    name: str, caption: str, wanted: Callable[[Study], bool], note: str = ""
) -> Callable[[Study], str]:
    shown = f"![{caption}]({name})" + (f"\n\n{note}" if note else "")
    return lambda study: shown if wanted(study) else NOT_RUN


FIGURES: dict[str, Callable[[Study], str]] = {
    "figure_means": _shown(
        "curves_mean.png",
        "Mean strict score by budget, method and arm",
        lambda study: study.group() is not None,
        "Bands: one standard deviation over three trainings to either side, which is no test. "
        "Grey: the paper's OLMo2-7B pair at 4096 tokens (rings attention, squares the memory; its "
        "single marks are random selectors).",
    ),
    "figure_tasks": _shown(
        "curves.png",
        "Strict score by budget, method, task and arm",
        lambda study: study.group() is not None,
    ),
    "figure_losses": _shown("losses.svg", "Losses by step", lambda study: bool(study.runs)),
}
