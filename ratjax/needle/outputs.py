"""What an evaluation writes.

results.json        what readers need: meta, and one row a cell
predictions.jsonl   one line a setting and prompt
prompts.jsonl       the prompts that its lines name, once each
timing.json         measured times, the only file that differs between two equal runs
journal.jsonl       answers so far, while the evaluation runs (`ratjax.needle.journal`)
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ratjax.files import write_file, write_json
from ratjax.needle.engine import Evaluation

RESULTS, PREDICTIONS, PROMPTS = "results.json", "predictions.jsonl", "prompts.jsonl"
HITS, TIMING, JOURNAL = "hits.json", "timing.json", "journal.jsonl"


def write_outputs(
    folder: str | os.PathLike,
    meta: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    measured_on: Mapping[str, Any] | None = None,
) -> None:
    """Writes all files, each at once, the results last.

    Args:
      folder: made if it is missing.
      meta: versions, device, commit, configuration: what a reader needs to repeat the run.
      evaluations: one a backbone.
      measured_on: what the times depend on beside the configuration, such as the batch size.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Backbones that share a tokenizer have the same prompts.
    prompts = {row["prompt"]: row for found in evaluations for row in found.prompts}
    _write_lines(folder / PROMPTS, prompts.values())
    _write_lines(folder / PREDICTIONS, (x for found in evaluations for x in found.predictions))
    timing = [row for found in evaluations for row in found.timing]
    write_json(folder / TIMING, {"meta": dict(measured_on or {}), "timing": timing})
    if hits := [row for found in evaluations for row in found.hits]:
        write_file(folder / HITS, json.dumps({"hits": hits}) + "\n")
    results = [row for found in evaluations for row in found.results]
    write_json(folder / RESULTS, {"meta": dict(meta), "results": results})


def _write_lines(path: pathlib.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
