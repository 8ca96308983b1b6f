"""One evaluated cell as `results.json` states it, and the check that it says all it must."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from ratjax.errors import InputError

# What makes a cell itself; predictions carry the same fields as their "setting" (task apart).
KEY_FIELDS = (
    "run",
    "backbone",
    "context_length",
    "train_seed",
    "method",
    "block_size",
    "k",
    "budget",
    "selector",
    "selector_seed",
    "task",
)
_NULLABLE = ("train_seed", "block_size", "k", "selector_seed")
_TEXT = ("run", "backbone", "method", "budget", "selector", "task")
COST_FIELDS = (
    "kv_read_fraction_prefill",
    "kv_read_fraction_decode",
    "cache_bytes",
    "seconds_per_prompt",
    "prefill_seconds",
    "decode_seconds",
    "tokens_per_s",
)


@dataclass(frozen=True)
class Setting:
    """How a backbone was run: everything about inference, nothing about the model or the task.

    `k` counts blocks (Quest, MoBA) or tokens (SnapKV); `budget` is the share of the context's
    keys and values a query may read, as a fraction in text ("1/4"; "1" for dense).
    """

    method: str
    block_size: int | None
    k: int | None
    budget: str
    selector: str

    @cached_property
    def fraction(self) -> float:
        """The budget as a number in (0, 1]."""
        return float(Fraction(self.budget))

    @property
    def is_dense(self) -> bool:
        return self.method == "dense"


@dataclass(frozen=True)
class Result:
    """One row of `results.json`. Scores and interval are 0 to 100, `raw` is the row as read."""

    run: str
    backbone: str
    context_length: int
    train_seed: int | None
    setting: Setting
    selector_seed: int | None
    task: str
    score_strict: float
    score_ruler: float
    samples: int
    ci95: tuple[float, float]
    kv_read_fraction: float | None
    raw: Mapping[str, Any]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The cell's identity: the values of `KEY_FIELDS`."""
        return tuple(self.raw.get(field) for field in KEY_FIELDS)

    def cost(self, field: str) -> float | None:
        """One of `COST_FIELDS`, or None where it was not measured."""
        value = self.raw.get(field)
        return None if value is None else float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_result(row: object, where: str) -> Result:
    """Checks one row of `results.json`.

    Args:
        row: the decoded object.
        where: file and position, for the message.

    Raises:
        InputError: a required field is missing, or has a value that it cannot have.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: {_shown(row)} is not an object with the fields of one result")

    def need(field: str, fits: bool, rule: str) -> Any:
        if field not in row:
            raise InputError(f"{where}: field {field!r} is missing; run the evaluation again")
        if not fits:
            raise InputError(f"{where}: {field}={_shown(row[field])} must be {rule}")
        return row[field]

    for field in _TEXT:
        need(field, isinstance(row.get(field), str) and row[field] != "", "a non-empty string")
    for field in _NULLABLE:
        value = row.get(field)
        need(field, value is None or _is_count(value), "an integer or null")
    try:
        fits = 0 < Fraction(row["budget"]) <= 1
    except (ValueError, ZeroDivisionError):
        fits = False
    need("budget", fits, "a fraction in text above 0 and at most 1, such as '1/4'")
    for field in ("context_length", "samples"):
        need(field, _is_count(row.get(field)) and row[field] > 0, "an integer above 0")
    for field in ("score_strict", "score_ruler"):
        need(field, _is_number(row.get(field)) and 0 <= row[field] <= 100, "between 0 and 100")
    read = row.get("kv_read_fraction")
    # Null where the method's phase never ran; sums of float32 may end a rounding error above 1.
    fits = read is None or (_is_number(read) and 0 <= read <= 1 + 1e-6)
    need("kv_read_fraction", fits, "between 0 and 1, or null where nothing was read")
    ends = row.get("ci95")
    fits = isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))
    need("ci95", fits and ends[0] <= ends[1], "two numbers [low, high]")
    for field in COST_FIELDS:
        if row.get(field) is not None:
            need(
                field, _is_number(row[field]) and row[field] >= 0, "a number of 0 or more, or null"
            )
    return Result(
        run=row["run"],
        backbone=row["backbone"],
        context_length=row["context_length"],
        train_seed=row["train_seed"],
        setting=Setting(row["method"], row["block_size"], row["k"], row["budget"], row["selector"]),
        selector_seed=row["selector_seed"],
        task=row["task"],
        score_strict=float(row["score_strict"]),
        score_ruler=float(row["score_ruler"]),
        samples=row["samples"],
        ci95=(float(ends[0]), float(ends[1])),
        kv_read_fraction=None if read is None else float(read),
        raw=row,
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(path: Path) -> Any:
    """Decodes a JSON file.

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); was its writing cut off?") from error
