"""Hit rates of the runs, as `hits.json` states them (`ratjax.needle.hits`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ratjax.errors import InputError
from ratjax.needle.report.load import HITS, Run
from ratjax.needle.report.records import Setting, read_json


@dataclass(frozen=True)
class Worth:
    """Prompts, and their mean strict score in percent; None without prompts."""

    prompts: int
    score: float | None


@dataclass(frozen=True)
class HitRates:
    """One cell: the best heads' hit rates in falling order, and what their hits are worth."""

    run: str
    context_length: int
    backbone: str
    setting: Setting
    task: str
    top: tuple[float, ...]
    given_hit: Worth
    given_miss: Worth


def load_hits(runs: Sequence[Run]) -> tuple[HitRates, ...]:
    """The hit rates of all runs that have any.

    Raises:
        InputError: a file that is not as an evaluation writes it.
    """
    found: list[HitRates] = []
    for run in runs:
        path = run.folder / HITS
        if not path.is_file():
            continue
        document = read_json(path)
        try:
            found += [_parse(row) for row in document["hits"]]
        except (KeyError, TypeError, ValueError, IndexError):
            raise InputError(f"{path}: not as an evaluation writes it; run it again") from None
    return tuple(found)


def _parse(row: dict) -> HitRates:
    fields = ("method", "block_size", "k", "budget", "selector")
    return HitRates(
        run=row["run"],
        context_length=int(row["context_length"]),
        backbone=row["backbone"],
        setting=Setting(*(row[field] for field in fields)),
        task=row["task"],
        top=tuple(float(rate) for rate, *_ in row["top"]),
        given_hit=_worth(row["given_hit"]),
        given_miss=_worth(row["given_miss"]),
    )


def _worth(row: dict) -> Worth:
    score = row["score_strict"]
    return Worth(int(row["prompts"]), None if score is None else float(score))


def together(worths: Sequence[Worth]) -> Worth:
    """Several tasks as one, each prompt counting alike."""
    prompts = sum(w.prompts for w in worths)
    points = sum(w.prompts * w.score for w in worths if w.score is not None)
    return Worth(prompts, points / prompts if prompts else None)
