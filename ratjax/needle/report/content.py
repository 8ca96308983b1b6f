"""Everything a report shows, read and computed once, before any of it is rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ratjax.errors import InputError
from ratjax.needle.report import labels, paper
from ratjax.needle.report.compare import Comparison, compare
from ratjax.needle.report.grid import Group, groups
from ratjax.needle.report.hits import HitRates, load_hits
from ratjax.needle.report.load import Run, load_runs, merge_meta, merge_results
from ratjax.needle.report.predictions import Predictions, read_predictions
from ratjax.needle.report.records import Result
from ratjax.needle.report.training import LossCurve, load_curves

# Answers of a cell to keep for the page; it may show fewer to stay small.
KEPT_ANSWERS = 12
# Wrong answers of a cell to keep for the list of failures.
KEPT_FAILURES = 3


@dataclass(frozen=True)
class Content:
    runs: tuple[Run, ...]
    meta: Mapping[str, Any]
    results: tuple[Result, ...]
    groups: tuple[Group, ...]
    comparisons: tuple[tuple[Comparison, ...], ...]
    predictions: Predictions
    training: tuple[LossCurve, ...]
    hits: tuple[HitRates, ...]
    command: str

    @cached_property
    def backbones(self) -> tuple[str, ...]:
        """All backbones of the report; the position is a backbone's colour and marker."""
        return tuple(sorted({r.backbone for r in self.results}, key=labels.backbone_order))

    @cached_property
    def reference(self) -> str | None:
        """The paper's checkpoints that these runs repeat (`meta.paper_checkpoints`), if they do."""
        stated = {run.meta.get("paper_checkpoints") for run in self.runs}
        return stated.pop() if len(stated) == 1 else None

    @cached_property
    def parameters(self) -> int | None:
        """The largest model's parameters, where `meta.parameters` states them."""
        counts: list[int] = []
        for run in self.runs:
            stated = run.meta.get("parameters")
            values = stated.values() if isinstance(stated, Mapping) else [stated]
            counts += [int(v) for v in values if isinstance(v, int | float)]
        return max(counts, default=None)

    @cached_property
    def descriptions(self) -> list[str]:
        """What the runs say they are (`meta.description`), each once."""
        stated = (run.meta.get("description") for run in self.runs)
        return list(dict.fromkeys(text for text in stated if isinstance(text, str) and text))


def collect(
    runs: Sequence[Path], training: Sequence[Path] = (), command: str = "", skip: Path | None = None
) -> Content:
    """Reads runs and computes every comparison.

    Args:
        runs: folders with results.json; metrics.jsonl files are looked for beneath them.
        training: further folders to look for metrics.jsonl in.
        command: how this report was asked for, to be printed in it.
        skip: a folder that cannot be a run (the report's own).

    Raises:
        InputError: what is wrong with the input, in one line.
    """
    for folder in training:
        if not folder.is_dir():
            raise InputError(f"training={folder}: no such folder")
    loaded = load_runs(runs)
    for run in loaded:
        if skip is not None and run.folder.resolve() == skip.resolve():
            raise InputError(
                f"target={skip}: is one of the runs, whose results would be overwritten; "
                "choose another folder"
            )
        stated = run.meta.get("paper_checkpoints")
        if stated is not None and stated not in paper.CHECKPOINTS:
            known = ", ".join(paper.CHECKPOINTS)
            raise InputError(
                f"{run.folder / 'results.json'}: meta.paper_checkpoints={stated!r} must be one of "
                f"{known}"
            )
    results = merge_results(loaded)
    found = groups(results)
    predictions = read_predictions(loaded, KEPT_ANSWERS, KEPT_FAILURES)
    backbones = sorted({r.backbone for r in results}, key=labels.backbone_order)
    folders = list(dict.fromkeys([*(run.folder for run in loaded), *training]))
    return Content(
        runs=loaded,
        meta=merge_meta(loaded),
        results=results,
        groups=found,
        comparisons=tuple(compare(group, predictions) for group in found),
        predictions=predictions,
        training=load_curves(folders, backbones),
        hits=load_hits(loaded),
        command=command,
    )
