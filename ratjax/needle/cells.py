"""From answers to the rows of `results.json`: a cell's scores, interval and costs."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ratjax.config.model import ModelConfig
from ratjax.config.needle import Setting
from ratjax.needle import cost, score
from ratjax.needle.intervals import confidence_interval
from ratjax.needle.settings import pattern_of, sparse_phases

PHASES = ("prefill", "decode")
# What is kept of an answer: its `prediction` (the text up to the stop token), the `tokens` that it
# took (with the stop token), and `reads`: entries read and visible in prefill, then in decoding.
Record = Mapping[str, Any]


def scores(found: Record, outputs: Sequence[str]) -> dict[str, float]:
    """Both scores of an answer, each in [0, 1]."""
    text = found["prediction"]
    return {"strict": score.strict(text, outputs), "ruler": score.ruler(text, outputs)}


def cell(
    config: ModelConfig, setting: Setting, answered: Sequence[tuple[Mapping[str, Any], Record]]
) -> dict[str, Any]:
    """Scores, interval and cost of one setting on one task.

    Args:
      config: the model's.
      setting: how it was run.
      answered: (prompt row, its record), one a prompt.

    Returns:
      The fields of a `results.json` row that are not the cell's name. Bytes and operations are
      means over prompts, counted (`ratjax.needle.cost`), not measured.
    """
    both = [scores(found, row["outputs"]) for row, found in answered]
    strict = [each["strict"] for each in both]
    records = [found for _, found in answered]
    fractions = {f"kv_read_fraction_{phase}": read_fraction(records, (phase,)) for phase in PHASES}
    return {
        "score_strict": round(100 * float(np.mean(strict)), 2),
        "score_ruler": round(100 * float(np.mean([each["ruler"] for each in both])), 2),
        "samples": len(answered),
        "ci95": [round(x, 2) for x in confidence_interval(strict)],
        "kv_read_fraction": read_fraction(records, sparse_phases(setting)),
        **fractions,
        **costs(config, setting, answered),
    }


def read_fraction(records: Iterable[Record], phases: Iterable[str]) -> float | None:
    """Entries read over entries visible, over all prompts and the given phases."""
    places = [2 * PHASES.index(phase) for phase in phases]
    pairs = [found["reads"][at : at + 2] for found in records for at in places]
    read, visible = (sum(column) for column in zip(*pairs, strict=True))
    return read / visible if visible else None


def costs(
    config: ModelConfig, setting: Setting, answered: Sequence[tuple[Mapping[str, Any], Record]]
) -> dict[str, float | None]:
    """Operations of prefill a prompt, bytes kept of it, and bytes read of them a decoded token."""
    pattern = pattern_of(setting)
    kept, flops, steps, read, visible = [], [], 0, 0.0, 0.0
    for row, found in answered:
        pairs, _, seen, context = found["reads"]
        kept.append(cost.cache_bytes(config, pattern, row["length"]))
        flops.append(cost.prefill_flops(config, pattern, row["length"], pairs))
        steps += found["tokens"] - 1  # the first token comes from prefill
        read, visible = read + seen, visible + context
    per_token = cost.decode_bytes(config, pattern, visible / steps, read / steps) if steps else None
    return {
        "prefill_flops": fmean(flops),
        "cache_bytes": fmean(kept),
        "kv_bytes_per_token": per_token,
    }


def timing(seconds: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Measured times of one setting, from those of its batches.

    Args:
      seconds: of each batch: `prefill` and `decode` seconds, its `rows`, the `tokens` decoded, and
        whether it `compiled`; such a batch does not count.

    Returns:
      Seconds a prompt (prefill counts in full, shared or not) and tokens decoded a second; None
      where every batch compiled.
    """
    steady = [one for one in seconds if not one["compiled"]]
    rows = sum(one["rows"] for one in steady)
    prefill, decode = (sum(one[phase] for one in steady) for phase in PHASES)
    tokens = sum(one["tokens"] for one in steady)
    return {
        "prefill_seconds": prefill / rows if rows else None,
        "decode_seconds": decode / rows if rows else None,
        "seconds_per_prompt": (prefill + decode) / rows if rows else None,
        "tokens_per_s": tokens / decode if decode else None,
    }
