"""Writes the report of one or more needle evaluations.

    python -m launch.report --runs=runs/a,runs/b --target=runs/report

Every run is a folder with the results.json of `launch.evaluate`; predictions.jsonl beside it gives
the paired tests and the browser of answers, metrics.jsonl files beneath it the loss curves.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from launch import command
from ratjax.errors import InputError
from ratjax.needle import report

_RUNS = flags.DEFINE_list("runs", [], "Folders with a results.json each, separated by commas.")
_TARGET = flags.DEFINE_string(
    "target",
    None,
    "Folder to write index.html, report.md, tables.tex, figures and results.json into.",
)
_TRAINING = flags.DEFINE_list(
    "training", [], "Further folders to look for metrics.jsonl files (loss curves) in."
)


def main() -> None:
    if not _RUNS.value:
        raise InputError("runs=[]: name the folders to report on, as --runs=a,b")
    if not _TARGET.value:
        raise InputError("target='': name the folder to write, as --target=runs/report")
    page = report.build(
        [Path(run) for run in _RUNS.value],
        Path(_TARGET.value),
        [Path(folder) for folder in _TRAINING.value],
        command=shlex.join(["python", "-m", "launch.report", *sys.argv[1:]]),
    )
    print(f"Report: {page}")


if __name__ == "__main__":
    command.run(main)
