"""Prompts from RULER's own JSONL files, in place of drawn ones.

RULER's generator writes `<folder>/<task>/validation.jsonl`, a row a line with the fields `index`,
`input`, `outputs`, `length` and, since 2025, `answer_prefix` and `token_position_answer`
(scripts/data/synthetic/niah.py in NVIDIA/RULER). A row's prompt is its `input` as it stands, as in
the released RAT+ code: an answer prefix that is a field of its own is left out, one that still
ends the input (files from before 2025) stays. Lengths and positions are counted anew, with the
tokenizer that is evaluated.
"""

import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ratjax.errors import InputError, nearest
from ratjax.needle.drawing import Prompt
from ratjax.needle.encoding import check_values, encode, plain
from ratjax.needle.tasks import TASKS

# Rows encoded together.
_AT_ONCE = 128


@dataclasses.dataclass(frozen=True)
class _Row:
    """One line: where it stands, and what it says."""

    where: str
    task: str
    index: int
    text: str
    answers: tuple[str, ...]


def read_prompts(
    files: str, tokenizer: Tokenizer, tasks: Sequence[str], samples: int, longest: int
) -> dict[str, list[tuple[int, Prompt]]]:
    """The prompts of RULER's files, by task.

    A row's task is its field `task`, or else the name that its file, or the nearest folder above
    it, holds (`niah_single_1/validation.jsonl`, `niah_single_1_4096.jsonl`).

    Args:
      files: a JSONL file, a folder (every .jsonl beneath it), or a pattern with `*`, `**` or `?`.
      tokenizer: whose tokens are counted, without special tokens.
      tasks: the tasks wanted; rows of other needle tasks are passed over.
      samples: rows of a task to take, those of the lowest indices.
      longest: tokens that a prompt may have.

    Returns:
      task -> (the row's `index`, the prompt) in the order of their indices; the tasks in the order
      of `tasks`, without those that have no rows.

    Raises:
      InputError: nothing there; a line that is not JSON, lacks a field or has a wrong one; a task
        that is not RULER's; an index given twice; an answer that is not in its prompt; a prompt
        that is too long; a tokenizer that cannot express the answers.
    """
    rows = _collect(files, tasks)
    tokenizer = plain(tokenizer)
    return {
        task: list(_prompts([found[i] for i in sorted(found)[:samples]], tokenizer, task, longest))
        for task, found in rows.items()
    }


def tasks_in(files: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """Those of `tasks` that the files have rows of.

    Raises:
      InputError: as `read_prompts`, but for what only a tokenizer can tell.
    """
    return tuple(_collect(files, tasks))


def _collect(files: str, tasks: Sequence[str]) -> dict[str, dict[int, _Row]]:
    """Rows by task and index."""
    rows: dict[str, dict[int, _Row]] = {task: {} for task in tasks}
    for path in _paths(files):
        for row in _rows(path):
            if row.task not in rows:
                continue
            first = rows[row.task].setdefault(row.index, row)
            if first is not row:
                raise InputError(
                    f"{row.where}: index={row.index} of {row.task} again, as in {first.where}; "
                    "evaluate one length at a time, and each file once"
                )
    if not any(rows.values()):
        raise InputError(
            f"needle.files={files!r}: no rows of {', '.join(tasks)}; name files of these tasks, or "
            "other needle.tasks"
        )
    return {task: found for task, found in rows.items() if found}


def _paths(files: str) -> list[Path]:
    place = os.path.expanduser(files)
    if os.path.isdir(place):
        found = Path(place).rglob("*.jsonl")
    else:
        found = (Path(match) for match in glob.glob(place, recursive=True))
    paths = sorted(path for path in found if path.is_file())
    if not paths:
        raise InputError(
            f"needle.files={files!r}: no such file, or no .jsonl in it; name RULER's JSONL files, "
            "their folder, or a pattern in quotes"
        )
    return paths


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(line, path, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None


def _parse(line: str, path: Path, where: str) -> _Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: not an object with the fields index, input and outputs")
    outputs = _field(row, "outputs", list, where)
    if not outputs or not all(isinstance(answer, str) and answer for answer in outputs):
        raise InputError(f"{where}: outputs={outputs!r} must be a list of answers, at least one")
    return _Row(
        where,
        _task(row, path, where),
        _field(row, "index", int, where),
        _field(row, "input", str, where),
        tuple(outputs),
    )


def _field(row: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in row:
        raise InputError(f"{where}: field {name!r} is missing; RULER's rows have index, input and "
                         "outputs")  # fmt: skip
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {name}={value!r:.60} must be of type {kind.__name__}")
    return value


def _task(row: Mapping[str, Any], path: Path, where: str) -> str:
    if "task" in row:
        name = row["task"]
        if name not in TASKS:
            raise InputError(f"{where}: task={name!r}: no such task; {nearest(str(name), TASKS)}")
        return name
    for part in (path.stem, *(parent.name for parent in path.absolute().parents)):
        for name in TASKS:
            if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", part):
                return name
    raise InputError(
        f"{where}: of no known task: it has no field 'task', and {path} no task's name in it, such "
        f"as {next(iter(TASKS))}"
    )


def _prompts(
    rows: Sequence[_Row], tokenizer: Tokenizer, task: str, longest: int
) -> Iterator[tuple[int, Prompt]]:
    for kind in (TASKS[task].value_type, TASKS[task].key_type):
        check_values(tokenizer, kind)
    for start in range(0, len(rows), _AT_ONCE):
        few = rows[start : start + _AT_ONCE]
        for row, found in zip(few, encode(tokenizer, [row.text for row in few]), strict=True):
            if len(found.ids) > longest:
                raise InputError(
                    f"{row.where}: {len(found.ids)} tokens with this tokenizer, of which "
                    f"needle.context_length less needle.tokens_to_generate leaves {longest}; raise "
                    "needle.context_length"
                )
            spans = tuple(_span(row, answer) for answer in row.answers)
            yield row.index, Prompt(task, row.text, row.answers, spans, found)


def _span(row: _Row, answer: str) -> tuple[int, int]:
    """Where an answer stands: in its needle, or at its first occurrence where it has none."""
    needle = row.text.find(f" is: {answer}.")
    at = needle + len(" is: ") if needle >= 0 else row.text.find(answer)
    if at < 0:
        raise InputError(f"{row.where}: the answer {answer!r} is not in its input")
    return at, at + len(answer)
