"""Gathers finished runs of `launch.study` into one small file each, without checkpoints.

  python -m docs.study.collect --config=experiments/study/main.py --workdir=runs/study/main

Runs that are not finished are named and passed over; `--target` is docs/study/results unless told
otherwise.
"""

import argparse
import hashlib
import json
import math
import pathlib
import statistics
import sys
from collections import defaultdict
from typing import Any

from docs.study import stored
from experiments.study.runs import Run, flops, load, optimizer_steps, steps
from launch.study_queue import Job
from ratjax.errors import InputError
from ratjax.files import read_json, write_file
from ratjax.model.checkpoint import MODEL, TOKENIZER
from ratjax.needle.outputs import HITS, PREDICTIONS, TIMING

# Points of a loss curve that are kept, each the mean of the steps around it.
POINTS = 200


def collect(job: Job, status: dict[str, Any]) -> dict[str, Any]:
    """The document of a finished run."""
    run, needle = job.run, job.folder / "needle"
    found = read_json(job.results)
    lines = [json.loads(x) for x in (needle / PREDICTIONS).read_text("utf-8").splitlines()]
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    named: dict[str, dict[int, str]] = defaultdict(dict)
    for line in lines:
        scores[_cell({**line["setting"], "task": line["task"]})][line["index"]] = line["strict"]
        named[line["task"]][line["index"]] = line["prompt"]
    rows = []
    for row in found["results"]:
        own = scores[_cell(row)]
        packed = stored.pack([own[index] for index in sorted(own)])
        rows.append({**_relabelled(row, run), "scores": packed})
    timing = read_json(needle / TIMING)
    hits = read_json(needle / HITS)["hits"] if (needle / HITS).is_file() else []
    seconds = {phase: status[f"{phase}_seconds"] for phase in ("train", "evaluate")}
    meta = {
        **found["meta"],
        "run": run.study,
        "name": run.name,
        "arm": run.arm,
        "differs": run.differs,
        "train_seed": run.experiment.train.seed,
        "date": timing["meta"]["date"],
        "prompts": {task: _digest(own[i] for i in sorted(own)) for task, own in named.items()},
        "training": training(job),
        "compute": {
            "gpu_seconds": round(status["device_seconds"], 1),
            **{f"{phase}_seconds": round(value, 1) for phase, value in seconds.items()},
            "starts": status["starts"],
            "train_flops": flops(run.experiment),
        },
    }
    return {
        "meta": meta,
        "results": rows,
        # Without each head's own rate: the best ones are what is shown.
        "hits": [{k: v for k, v in _relabelled(row, run).items() if k != "rates"} for row in hits],
        "timing": [_relabelled(row, run) for row in timing["timing"]],
    }


def training(job: Job) -> dict[str, Any]:
    """What is kept of metrics.jsonl."""
    lines = [
        json.loads(line)
        for line in (job.folder / "model" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    every = math.ceil(len(lines) / POINTS)
    chunks = [lines[i : i + every] for i in range(0, len(lines), every)]
    speeds = [line["tokens_per_s"] for line in lines if line.get("tokens_per_s")]
    gates = [line["gate_lengths"] for line in lines if line.get("gate_lengths")]
    return {
        "steps": steps(job.run.experiment),
        "optimizer_steps": optimizer_steps(job.run.experiment),
        "revision": _revision(job.folder / "model"),
        "tokenizer": hashlib.sha256((job.folder / "model" / TOKENIZER).read_bytes()).hexdigest(),
        "loss": [
            [chunk[-1]["step"], round(statistics.fmean(line["loss"] for line in chunk), 5)]
            for chunk in chunks
        ],
        "held_out": [
            [line["step"], round(line["loss_held_out"], 5)]
            for line in lines
            if "loss_held_out" in line
        ],
        "tokens_per_s": round(statistics.median(speeds)) if speeds else None,
        "gate_lengths": gates[-1] if gates else None,
    }


def _revision(model: pathlib.Path) -> str | None:
    return read_json(model / MODEL).get("provenance", {}).get("revision")


def _relabelled(row: dict[str, Any], run: Run) -> dict[str, Any]:
    """An evaluation knows its own experiment and backbone; the study knows what they stand for."""
    recipe = {"recipe": run.differs} if run.study == "tuning" else {}
    return {**row, "run": run.study, "backbone": run.arm, **recipe}


def _cell(row: dict[str, Any]) -> str:
    fields = ("method", "block_size", "k", "budget", "selector", "selector_seed", "task")
    return json.dumps([row[field] for field in fields])


def _digest(names) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--target", default=stored.FOLDER, type=pathlib.Path)
    given = parser.parse_args(arguments)
    try:
        status = read_json(given.workdir / "status.json")["runs"]
    except FileNotFoundError:
        print(f"error: {given.workdir}: no status.json; run launch.study there", file=sys.stderr)
        return 2
    try:
        for run in load(given.config):
            job = Job(run, given.workdir / run.name)
            if run.name not in status or job.phase != "done":
                print(f"{run.name}: not finished")
                continue
            path = given.target / f"{run.study}_{run.name}.json"
            document = collect(job, status[run.name])
            write_file(path, json.dumps(document, separators=(",", ":")) + "\n")
            stored.read(path)
            print(f"{path}: {len(document['results'])} cells")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
