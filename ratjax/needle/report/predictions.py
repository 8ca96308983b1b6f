"""Streams predictions.jsonl: per-prompt scores for every cell, and some answers to look at.

The files have a line a prompt and setting, so a line is read once and forgotten; what stays is a
score and the prompt's name, and the first `keep` answers of each cell. Their prompts are looked up
in prompts.jsonl, which may be large too, at the end.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ratjax.errors import InputError
from ratjax.needle.report.load import PROMPTS, Run
from ratjax.needle.report.records import KEY_FIELDS, Result

# Means of per-prompt scores against the stated score, in points: two decimals were rounded away.
_TOLERANCE = 0.011


@dataclass(frozen=True)
class Answer:
    """One prompt of one cell: what was asked, what was right and what the model said."""

    index: int
    prompt: str
    gold: tuple[str, ...]
    prediction: str
    strict: float


@dataclass(frozen=True)
class _Line:
    """An answer that names its prompt instead of holding it."""

    index: int
    prompt: str
    prediction: str
    strict: float


@dataclass
class CellPredictions:
    """Prompt index -> strict score in [0, 1], and -> the prompt's name.

    `answers` are the first ones, `failures` the first of those that were not fully right.
    """

    strict: dict[int, float] = field(default_factory=dict)
    prompts: dict[int, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    failures: list[Answer] = field(default_factory=list)


Predictions = dict[tuple[Any, ...], CellPredictions]


def read_predictions(runs: Sequence[Run], keep: int, keep_failures: int = 0) -> Predictions:
    """All predictions of the runs by `Result.key`.

    Args:
        keep: how many answers of each cell to keep whole, those of the lowest prompt indices.
        keep_failures: the same of the answers that were not fully right.

    Raises:
        InputError: a broken line, a line that belongs to no result or names no prompt, or a cell
            whose per-prompt scores do not average to the score that results.json states.
    """
    cells: Predictions = {}
    kept: dict[tuple[Any, ...], list[_Line]] = {}
    failed: dict[tuple[Any, ...], list[_Line]] = {}
    for run in runs:
        path = run.predictions
        if path is None:
            continue
        owners = _Owners(run.results)
        for where, row in _lines(path):
            result = owners.find(row, where)
            cell = cells.setdefault(result.key, CellPredictions())
            line = _parse(row, where)
            if line.index not in cell.strict:
                _keep(kept.setdefault(result.key, []), line, keep)
                if line.strict < 1:
                    _keep(failed.setdefault(result.key, []), line, keep_failures)
            # A cell that two folders share arrives twice; the rows are equal, so the last may win.
            cell.strict[line.index] = line.strict
            cell.prompts[line.index] = line.prompt
        _check_means(path, run.results, cells)
    named = {line.prompt for found in (kept, failed) for lines in found.values() for line in lines}
    prompts = _prompts(runs, named)

    def answers(lines: Sequence[_Line]) -> list[Answer]:
        return [
            Answer(line.index, *prompts[line.prompt], line.prediction, line.strict)
            for line in sorted(lines, key=lambda line: line.index)
        ]

    for key, cell in cells.items():
        cell.answers = answers(kept.get(key, ()))
        cell.failures = answers(failed.get(key, ()))
    return cells


def _prompts(runs: Sequence[Run], wanted: set[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The text and the right answers of the prompts with these names."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for run in runs:
        path = run.folder / PROMPTS
        if not wanted - found.keys() or run.predictions is None or not path.is_file():
            continue
        for where, row in _lines(path):
            name = _need(row, "prompt", str, where)
            if name in wanted:
                gold = tuple(map(str, _need(row, "outputs", list, where)))
                found[name] = (_need(row, "input", str, where), gold)
    if missing := wanted - found.keys():
        folders = ", ".join(str(run.folder / PROMPTS) for run in runs if run.predictions)
        raise InputError(
            f"{folders}: without the prompt {min(missing)!r}, which predictions.jsonl names; both "
            "files must come from the same evaluation"
        )
    return found


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{where}: not valid JSON ({error}); run the evaluation again, it mends the end"
                ) from error
            if not isinstance(row, dict):
                raise InputError(f"{where}: not an object with the fields of one prediction")
            yield where, row


def _parse(row: Mapping[str, Any], where: str) -> _Line:
    strict = float(_need(row, "strict", (int, float), where))
    if not 0 <= strict <= 1:
        raise InputError(f"{where}: strict={strict} must be between 0 and 1")
    return _Line(
        index=_need(row, "index", int, where),
        prompt=_need(row, "prompt", str, where),
        prediction=_need(row, "prediction", str, where),
        strict=strict,
    )


def _need(row: Mapping[str, Any], name: str, kind: Any, where: str) -> Any:
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: field {name!r} is missing or of the wrong type")
    return value


def _keep(kept: list[_Line], line: _Line, most: int) -> None:
    """Adds a line, and drops the one of the highest index where there are more than `most`."""
    kept.append(line)
    if len(kept) > most:
        kept.remove(max(kept, key=lambda each: each.index))


class _Owners:
    """Finds the result that a prediction belongs to, by the fields its setting states."""

    def __init__(self, results: Sequence[Result]):
        self._results = results
        # Names of the stated fields -> their values -> the rows that have them.
        self._indexes: dict[tuple[str, ...], dict[tuple[Any, ...], list[Result]]] = {}

    def find(self, row: Mapping[str, Any], where: str) -> Result:
        setting = row.get("setting")
        if not isinstance(setting, dict):
            raise InputError(f"{where}: field 'setting' is missing or of the wrong type")
        stated = {**setting, "task": row.get("task")}
        names = tuple(name for name in KEY_FIELDS if name in stated)
        values = tuple(stated[name] for name in names)
        try:
            matches = self._index(names).get(values, [])
        except TypeError:  # a list or an object where a plain value belongs
            matches = []
        if len(matches) != 1:
            cell = ", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True))
            raise InputError(
                f"{where}: its setting and task fit {len(matches)} rows of results.json ({cell}); "
                "both files must come from the same evaluation"
            )
        return matches[0]

    def _index(self, names: tuple[str, ...]) -> dict[tuple[Any, ...], list[Result]]:
        if names not in self._indexes:
            index: dict[tuple[Any, ...], list[Result]] = {}
            for result in self._results:
                index.setdefault(tuple(result.raw.get(name) for name in names), []).append(result)
            self._indexes[names] = index
        return self._indexes[names]


def _check_means(path: Path, results: Sequence[Result], cells: Predictions) -> None:
    for result in results:
        cell = cells.get(result.key)
        if cell is None:
            continue
        mean = 100 * sum(cell.strict.values()) / len(cell.strict)
        if abs(mean - result.score_strict) > _TOLERANCE:
            raise InputError(
                f"{path}: the {len(cell.strict)} predictions of {result.backbone}, "
                f"{result.setting.method} {result.setting.budget}, {result.task} average to "
                f"{mean:.2f}, but results.json states score_strict={result.score_strict:g}; "
                "both files must come from the same evaluation"
            )
