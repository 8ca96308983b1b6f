"""What an evaluation writes: `results.json` and `predictions.jsonl`."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ratjax.files import write_file, write_json

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"


def write_outputs(
    folder: str | os.PathLike,
    meta: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
) -> None:
    """Writes both files, each at once, the results last.

    Args:
      folder: made if it is missing.
      meta: versions, device, commit, configuration: what a reader needs to repeat the run.
      results: one object a cell (`engine.evaluate`).
      predictions: one object a prompt and setting.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line) + "\n" for line in predictions)
    write_file(folder / PREDICTIONS, lines.encode())
    write_json(folder / RESULTS, {"meta": dict(meta), "results": list(results)})
