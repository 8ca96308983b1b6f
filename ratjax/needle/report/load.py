"""Reads run folders and merges what they hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratjax.errors import InputError
from ratjax.needle.report.records import (
    KEY_FIELDS,
    Result,
    Times,
    parse_result,
    read_json,
    setting_key,
)

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
PROMPTS = "prompts.jsonl"
TIMING = "timing.json"
HITS = "hits.json"


@dataclass(frozen=True)
class Run:
    """One evaluated folder: its meta, rows and times, and where its predictions are if any."""

    folder: Path
    meta: Mapping[str, Any]
    results: tuple[Result, ...]
    timing: tuple[Mapping[str, Any], ...] = ()

    @property
    def predictions(self) -> Path | None:
        path = self.folder / PREDICTIONS
        return path if path.is_file() else None


def load_run(folder: Path) -> Run:
    """Reads and checks `<folder>/results.json`.

    Raises:
        InputError: the file is missing, broken, empty, or a row lacks a required field.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(f"{path}: no such file; give --runs the folders that evaluations wrote")
    document = read_json(path)
    for field, kind in (("meta", dict), ("results", list)):
        if not isinstance(document, dict) or not isinstance(document.get(field), kind):
            raise InputError(f"{path}: field {field!r} is missing or of the wrong type")
    if not document["results"]:
        raise InputError(f"{path}: field 'results' is empty; the evaluation has not finished")
    times = _load_timing(folder / TIMING)
    rows = [
        parse_result(r, f"{path}: results[{i}]", times) for i, r in enumerate(document["results"])
    ]
    return Run(folder, document["meta"], tuple(rows), tuple(times.values()))


def _load_timing(path: Path) -> Times:
    """Measured times by setting; nothing where the file is not there."""
    if not path.is_file():
        return {}
    document = read_json(path)
    rows = document.get("timing") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: field 'timing' is missing or of the wrong type")
    return {setting_key(row): row for row in rows}


def load_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Reads several run folders; one named twice is read once.

    Raises:
        InputError: no folders, or what `load_run` raises.
    """
    if not folders:
        raise InputError("runs=[]: name at least one folder with a results.json")
    distinct = {folder.resolve(): folder for folder in reversed(folders)}
    return tuple(load_run(folder) for folder in reversed(distinct.values()))


def merge_results(runs: Sequence[Run]) -> tuple[Result, ...]:
    """All rows, each cell once.

    Raises:
        InputError: two folders state the same cell differently.
    """
    seen: dict[tuple[Any, ...], tuple[Path, Result]] = {}
    for run in runs:
        for result in run.results:
            folder, kept = seen.setdefault(result.key, (run.folder, result))
            if kept.raw != result.raw:
                cell = ", ".join(f"{f}={v}" for f, v in zip(KEY_FIELDS, result.key, strict=True))
                raise InputError(
                    f"{folder / RESULTS} and {run.folder / RESULTS} state different values for the "
                    f"same cell ({cell}); evaluate one of them under another run name"
                )
    return tuple(result for _, result in seen.values())


def merge_meta(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs' common meta: fields on which all agree as they are, the others by folder name."""
    if len(runs) == 1:
        return dict(runs[0].meta)
    names = _short_names([run.folder for run in runs])
    merged: dict[str, Any] = {}
    for field in dict.fromkeys(field for run in runs for field in run.meta):
        values = [run.meta.get(field) for run in runs]
        agree = all(value == values[0] for value in values)
        merged[field] = values[0] if agree else dict(zip(names, values, strict=True))
    merged["merged_from"] = names
    return merged


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest path tails that tell the folders apart."""
    resolved = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in resolved]
