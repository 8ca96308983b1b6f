"""Writes a report whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ratjax.errors import InputError
from ratjax.needle.report.comparisons import comparisons_document
from ratjax.needle.report.content import Content, collect
from ratjax.needle.report.figures import draw_figures
from ratjax.needle.report.latex import latex
from ratjax.needle.report.load import HITS, PREDICTIONS, PROMPTS, RESULTS, TIMING, Run
from ratjax.needle.report.markdown import markdown
from ratjax.needle.report.page import page
from ratjax.needle.report.records import read_json

PAGE = "index.html"
# Everything a report may consist of: what an earlier one left and this one lacks is removed.
OUTPUTS = (
    "curves_mean.png",
    "curves.png",
    PREDICTIONS,
    PROMPTS,
    TIMING,
    HITS,
    "comparisons.json",
    "report.md",
    "tables.tex",
    RESULTS,
    PAGE,
)


def build(
    runs: Sequence[Path], target: Path, training: Sequence[Path] = (), command: str = ""
) -> Path:
    """Reads evaluated runs and writes their report.

    Everything is written beside `target` under a temporary name first, then moved in file by file,
    the page last; an error leaves an earlier report as it was.

    Args:
        runs: folders, each with results.json and perhaps predictions.jsonl with prompts.jsonl,
            timing.json, and metrics.jsonl files.
        target: the folder to write; made if need be. Files in it that are no report's stay.
        training: further folders with metrics.jsonl files.
        command: the command line, to be printed in the report.

    Returns:
        The page's path.

    Raises:
        InputError: what is wrong with the input, in one line.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"target={target}: is a file; name a folder")
    content = collect(runs, training, command, skip=target)
    shown, target = target, target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(content, made)
        target.mkdir(exist_ok=True)
        for name in OUTPUTS:
            if (made / name).exists():
                os.replace(made / name, target / name)
            else:
                (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return shown / PAGE


def _write(content: Content, folder: Path) -> None:
    figures = draw_figures(content, folder)
    rows = [dict(result.raw) for result in content.results]
    _write_json(folder / RESULTS, {"meta": content.meta, "results": rows})
    _write_json(folder / "comparisons.json", comparisons_document(content))
    (folder / "report.md").write_text(markdown(content, figures[:1]), encoding="utf-8")
    (folder / "tables.tex").write_text(latex(content), encoding="utf-8")
    (folder / PAGE).write_text(page(content), encoding="utf-8")
    times = [dict(row) for run in content.runs for row in run.timing]
    if times:
        _write_json(folder / TIMING, {"timing": times})
    hits = [run.folder / HITS for run in content.runs if (run.folder / HITS).is_file()]
    if hits:
        rows = [row for path in hits for row in read_json(path)["hits"]]
        (folder / HITS).write_text(json.dumps({"hits": rows}) + "\n", encoding="utf-8")
    _join_predictions(content.runs, folder / PREDICTIONS)
    _join_prompts(content.runs, folder / PROMPTS)


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _join_predictions(runs: Sequence[Run], path: Path) -> None:
    sources = [source for run in runs if (source := run.predictions) is not None]
    if not sources:
        return
    with path.open("wb") as out:
        for source in sources:
            with source.open("rb") as lines:
                shutil.copyfileobj(lines, out, 1 << 20)


def _join_prompts(runs: Sequence[Run], path: Path) -> None:
    """The prompts of all runs that have predictions, those that several share once."""
    sources = [run.folder / PROMPTS for run in runs if run.predictions is not None]
    seen: set[bytes] = set()
    with path.open("wb") as out:
        for source in sources:
            with source.open("rb") as lines:
                for line in lines:
                    name = hashlib.sha256(line).digest()
                    if name not in seen:
                        seen.add(name)
                        out.write(line)
    if not sources:
        path.unlink()
