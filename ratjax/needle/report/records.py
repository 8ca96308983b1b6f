"""One evaluated cell as `results.json` states it, and the check that it says all it must."""

import dataclasses
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
COST_FIELDS = (
    "kv_read_fraction_prefill",
    "kv_read_fraction_decode",
    "cache_bytes",
    "kv_bytes_per_token",
    "prefill_flops",
    "seconds_per_prompt",
    "prefill_seconds",
    "decode_seconds",
    "tokens_per_s",
)

Times = Mapping[tuple[Any, ...], Mapping[str, Any]]


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
    """One row of `results.json`. Scores and interval are 0 to 100, `raw` is the row as read.

    `times` is the setting's row of timing.json, where there is one.
    """

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
    times: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The cell's identity: the values of `KEY_FIELDS`."""
        return tuple(self.raw.get(field) for field in KEY_FIELDS)

    def cost(self, field: str) -> float | None:
        """One of `COST_FIELDS`, or None where it was not measured."""
        value = self.raw.get(field, self.times.get(field))
        return None if value is None else float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_budget(value: object) -> bool:
    try:
        return isinstance(value, str) and 0 < Fraction(value) <= 1
    except (ValueError, ZeroDivisionError):
        return False


def _is_interval(value: object) -> bool:
    ends = value if isinstance(value, list) else []
    return len(ends) == 2 and all(map(_is_number, ends)) and ends[0] <= ends[1]


# Fields, what their value must be, and the same in words.
_REQUIRED = (
    (
        ("run", "backbone", "method", "selector", "task"),
        lambda v: isinstance(v, str) and v != "",
        "a non-empty string",
    ),
    (
        ("train_seed", "block_size", "k", "selector_seed"),
        lambda v: v is None or _is_count(v),
        "an integer or null",
    ),
    (("budget",), _is_budget, "a fraction in text above 0 and at most 1, such as '1/4'"),
    (("context_length", "samples"), lambda v: _is_count(v) and v > 0, "an integer above 0"),
    (
        ("score_strict", "score_ruler"),
        lambda v: _is_number(v) and 0 <= v <= 100,
        "a number from 0 to 100",
    ),
    (("ci95",), _is_interval, "two numbers [low, high]"),
    (
        ("kv_read_fraction",),
        # Null where the method's phase never ran; sums of float32 may end a rounding above 1.
        lambda v: v is None or (_is_number(v) and 0 <= v <= 1 + 1e-6),
        "a number from 0 to 1, or null where nothing was read",
    ),
)


def parse_result(row: object, where: str, times: Times | None = None) -> Result:
    """Checks one row of `results.json`.

    Args:
        row: the decoded object.
        where: file and position, for the message.
        times: the rows of timing.json by `setting_key`, where there are any.

    Raises:
        InputError: a required field is missing, or has a value that it cannot have.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: {_shown(row)} is not an object with the fields of one result")
    for fields, fits, rule in _REQUIRED:
        for field in fields:
            if field not in row:
                raise InputError(f"{where}: field {field!r} is missing; run the evaluation again")
            if not fits(row[field]):
                raise InputError(f"{where}: {field}={_shown(row[field])} must be {rule}")
    for field in COST_FIELDS:
        value = row.get(field)
        if value is not None and not (_is_number(value) and value >= 0):
            raise InputError(f"{where}: {field}={_shown(value)} must be 0 or more, or null")
    low, high = row["ci95"]
    read = row["kv_read_fraction"]
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
        ci95=(float(low), float(high)),
        kv_read_fraction=None if read is None else float(read),
        raw=row,
        times=(times or {}).get(setting_key(row), {}),
    )


def setting_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row of results.json and one of timing.json have in common: all but the task."""
    return tuple(row.get(field) for field in KEY_FIELDS if field != "task")


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
