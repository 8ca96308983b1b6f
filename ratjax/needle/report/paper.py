"""The paper's own numbers (arXiv 2605.28640, Tables 3 to 5): beside ours, never among them.

They come from other models (7B) at 4096 tokens. `paper_results.json` holds them as data.
"""

import json
import statistics
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any

from ratjax.needle.report.records import Setting

CONTEXT_LENGTH = 4096
# Keys in the data, and what the paper calls these pairs of checkpoints.
CHECKPOINTS = {"olmo2_7b": "OLMo2-7B", "ratplus_7b_100bt": "RAT+ 7B"}
_MAIN_BLOCK = 64


@dataclass(frozen=True)
class PaperScore:
    """A score of the paper; `std` over its five selector seeds where the selector is random."""

    score: float
    std: float | None
    block_size: int | None


@cache
def _data() -> dict[str, Any]:
    path = resources.files("ratjax.needle.report").joinpath("paper_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def source() -> str:
    return _data()["source"]


def tasks() -> frozenset[str]:
    """The tasks that the paper's averages run over."""
    return frozenset(_data()["tasks"])


@cache
def _rows() -> dict[tuple[str, str, str, Fraction, str], dict[int | None, dict[str, Any]]]:
    rows: dict[Any, dict[int | None, dict[str, Any]]] = {}
    for row in _data()["rows"]:
        budget = Fraction(row["budget"])
        key = (row["checkpoints"], row["backbone"], row["method"], budget, row["selector"])
        rows.setdefault(key, {})[row["block_size"]] = row
    return rows


def find(checkpoints: str, backbone: str, setting: Setting, task: str | None) -> PaperScore | None:
    """The paper's score for the same method, budget, selector and backbone.

    Args:
        checkpoints: a key of `CHECKPOINTS`.
        task: None for the mean over the paper's eight tasks.

    Returns:
        The row with our block size if the paper has it, else that with its main block size (64, or
        none for SnapKV); None where the paper has no such row.
    """
    key = (checkpoints, backbone, setting.method, Fraction(setting.budget), setting.selector)
    blocks = _rows().get(key, {})
    for block_size in (setting.block_size, _MAIN_BLOCK, None):
        if block_size in blocks:
            row = blocks[block_size]
            if task is None:
                return PaperScore(statistics.fmean(row["scores"].values()), None, block_size)
            if task in row["scores"]:
                return PaperScore(row["scores"][task], row.get("std", {}).get(task), block_size)
    return None
