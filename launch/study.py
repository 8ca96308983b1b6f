"""Runs a list of trainings and evaluations over this machine's devices, and goes on from there.

  python -m launch.study --config=experiments/study/tuning.py --workdir=runs/study/tuning \\
      --devices=4 --sharing=2 --minutes=9 --only='1-*'

The file lists its runs as `RUNS` (`experiments.study.runs.Run`) and gives each to `--config=<file>:
<run>`. Data is made once; then every device has one process at a time, or `--sharing` of them (one
trains while another compiles), the longest runs first:
`launch.train` into <workdir>/<run>/model, `launch.evaluate` into <workdir>/<run>/needle, their
output beside them. A training that its watchdog has ended goes on from its last checkpoint, as long
as it gets further each time. When `--minutes` are over every process gets SIGTERM, saves and ends;
the same command goes on, and skips what is finished. <workdir>/status.json tells of all runs.

Status 1: a run failed, in a line each; the others ran on.
"""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags

from experiments.study.runs import choose, load
from launch import command
from launch.study_queue import Job, Queue
from ratjax.config.overrides import changes, to_json
from ratjax.errors import InputError, check_positive
from ratjax.files import read_json

ROOT = pathlib.Path(__file__).parent.parent
# Between SIGTERM and SIGKILL: as long as a training may take to save (train.grace_seconds).
GRACE_SECONDS = 40.0


def define() -> None:
    """Defines this command's flags."""
    everyone = command.FLAGS
    if "config" not in everyone:
        flags.DEFINE_string(
            "config", None, "A file with a list of runs, RUNS.", flag_values=everyone
        )
        flags.mark_flag_as_required("config", everyone)
    command.define_workdir("Where the runs go, a folder each.")
    flags.DEFINE_integer(
        "devices", 0, "Devices to use; 0: as many GPUs as there are.", flag_values=everyone
    )
    flags.DEFINE_integer(
        "sharing", 1, "Processes that share a device and its memory.", flag_values=everyone
    )
    flags.DEFINE_float(
        "minutes", 0.0, "Time until all is told to save and end; 0: none.", flag_values=everyone
    )
    flags.DEFINE_list("only", [], "Names of runs, with * and ?; empty: all.", flag_values=everyone)
    command.define_dry_run()


define()
flags.adopt_module_key_flags(command)


def visible_devices(wanted: int) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is to be for each process; None leaves it as it is.

    Raises:
      InputError: fewer GPUs than are wanted. On a machine without any, one process runs.
    """
    if wanted < 0:
        raise InputError(f"devices={wanted}: must not be negative")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = named.split(",") if named else _gpus()
    if not found:
        if wanted > 1:
            raise InputError(f"devices={wanted}: this machine has no GPU; use --devices=1")
        return [None]
    if wanted > len(found):
        raise InputError(f"devices={wanted}: this machine has {len(found)}")
    return list(found[: wanted or len(found)])


def _gpus() -> list[str]:
    """GPUs by number, without JAX: it would take their memory."""
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        count = sum(line.startswith("GPU") for line in said.stdout.splitlines())
    except (OSError, subprocess.CalledProcessError):  # a container may lack the tool
        count = len(list(pathlib.Path("/dev").glob("nvidia[0-9]*")))
    return [str(number) for number in range(count)]


def starter(config: str, sharing: int = 1) -> Callable[[Job, str, str | None], subprocess.Popen]:
    """A function that starts a job's phase on a device, its output beside its results.

    Of the device's memory JAX takes three quarters: here, of its part, unless the environment says
    otherwise.
    """

    def start(job: Job, phase: str, device: str | None) -> subprocess.Popen:
        model, needle = job.folder / "model", job.folder / "needle"
        places = {
            "train": [f"--workdir={model}"],
            "evaluate": [f"--checkpoint={model}", f"--workdir={needle}"],
        }
        words = ["-m", f"launch.{phase}", f"--config={config}:{job.run.name}", *places[phase]]
        print("$", shlex.join(["python", *words]), flush=True)
        environment = dict(os.environ)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        if sharing > 1:
            environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.75 / sharing:.3f}")
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / f"{phase}.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,  # an interrupt reaches this process alone, which tells them
            )

    return start


def check_finished(jobs: Sequence[Job]) -> None:
    """Raises `InputError` where a finished run was another one than the file says now."""
    for job in jobs:
        if job.phase == "done":
            stored = read_json(job.results)["meta"]["config"]
            wanted = json.loads(json.dumps(to_json(job.run.experiment)))
            for field, before, now in changes(stored, wanted):
                raise InputError(
                    f"{job.folder}: was run with {field}={before!r}, now it is {now!r}; remove the "
                    "folder to run it again"
                )


def table(queue: Queue) -> str:
    """A line a run."""
    rows = [("run", "state", "steps", "minutes", "dense")]
    for job in queue.jobs:
        status = queue.status[job.run.name]
        minutes = (status["train_seconds"] + status["evaluate_seconds"]) / 60
        dense = job.dense_score()
        rows.append(
            (
                job.run.name,
                status["state"],
                f"{job.done_steps()}/{job.steps}",
                f"{minutes:.1f}",
                "" if dense is None else f"{dense:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> int:
    began = time.monotonic()
    given = command.FLAGS
    if given.minutes:
        check_positive("minutes", given.minutes)
    runs = choose(load(given.config), given.only)
    workdir = pathlib.Path(given.workdir).absolute()
    check_positive("sharing", given.sharing)
    devices = visible_devices(given.devices)
    jobs = [Job(run, workdir / run.name) for run in runs]
    check_finished(jobs)
    if given.dry_run:
        for job in jobs:
            print(f"{job.run.name}: {job.phase}, {job.steps} steps, {job.flops:.3g} FLOPs")
        command.conclude({"runs": len(jobs), "devices": len(devices)})
        return 0
    deadline = began + 60 * given.minutes if given.minutes else float("inf")
    start = starter(given.config, given.sharing)
    slots = devices * given.sharing
    queue = Queue(jobs, workdir / "status.json", slots, start, GRACE_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: queue.stop())
    for job in jobs:
        experiment = job.run.experiment
        if job.phase == "train" and experiment.data.prepare:
            command.resolve(experiment.data.prepare)(experiment)
    print(f"data: ready after {time.monotonic() - began:.0f} s", flush=True)
    failures = queue.work(deadline)
    print(table(queue))
    for line in failures:
        command.warn(line)
    return 1 if failures else 0


if __name__ == "__main__":
    command.run(main)
