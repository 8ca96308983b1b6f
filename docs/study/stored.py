"""The study's files: what a finished run is stored as, and how it is read for tables.

<folder>/<study>_<run>.json holds {"meta", "results", "hits", "timing"}. Rows of `results` are those
of results.json, and each has `scores`: a character a prompt, in the order of their indices, for its
strict score in twelfths (0 to c): tasks have one to four answers.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ratjax.errors import InputError
from ratjax.files import read_json
from ratjax.needle.report.predictions import CellPredictions, Predictions
from ratjax.needle.report.records import Result, parse_result

DIGITS = "0123456789abc"
FOLDER = pathlib.Path(__file__).parent / "results"


def pack(scores: Sequence[float]) -> str:
    """Strict scores, each a whole number of twelfths of 1, as text.

    Raises:
      InputError: a score that is none.
    """
    twelfths = [round(12 * score) for score in scores]
    for score, found in zip(scores, twelfths, strict=True):
        if not (0 <= found <= 12 and abs(found / 12 - score) < 1e-6):
            raise InputError(f"score={score}: not a whole number of twelfths of 1")
    return "".join(DIGITS[found] for found in twelfths)


def unpack(text: str) -> list[float]:
    """What `pack` made text of."""
    return [float(Fraction(DIGITS.index(digit), 12)) for digit in text]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One run's file."""

    path: pathlib.Path
    meta: Mapping[str, Any]
    results: tuple[Result, ...]
    hits: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return self.meta["name"]

    @property
    def arm(self) -> str:
        return self.meta["arm"]

    @property
    def seed(self) -> int:
        return self.meta["train_seed"]

    def predictions(self) -> Predictions:
        """Each prompt's score, by cell; a prompt is named by all prompts of its task and a number,
        so that runs on other prompts are not paired."""
        found: Predictions = {}
        for result in self.results:
            scores = unpack(result.raw["scores"])
            named = self.meta["prompts"][result.task]
            found[result.key] = CellPredictions(
                strict=dict(enumerate(scores)),
                prompts={i: f"{named}-{i}" for i in range(len(scores))},
            )
        return found

    def dense(self) -> dict[str, float]:
        """Each task's dense strict score."""
        return {r.task: r.score_strict for r in self.results if r.setting.is_dense}

    def held_out_loss(self) -> float | None:
        """On text that was not trained on, at the end."""
        measured = self.meta["training"]["held_out"]
        return measured[-1][1] if measured else None


def read(path: pathlib.Path) -> Stored:
    """One file.

    Raises:
      InputError: not as `collect` writes it.
    """
    document = read_json(path)
    try:
        rows = [
            parse_result(row, f"{path}: results[{n}]") for n, row in enumerate(document["results"])
        ]
        stored = Stored(path, document["meta"], tuple(rows), tuple(document["hits"]))
        for field in ("run", "name", "arm", "train_seed", "prompts", "training", "compute"):
            stored.meta[field]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: field {error} is missing; collect the run again") from None
    return stored


def read_all(folder: pathlib.Path) -> list[Stored]:
    """All runs of a folder, by name."""
    return [read(path) for path in sorted(folder.glob("*.json"))]
