"""A queue of trainings and evaluations over a few devices, time limited."""

import dataclasses
import pathlib
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from experiments.study import runs as study
from experiments.study.runs import Run
from ratjax.files import read_json, write_json
from ratjax.model import checkpoint
from ratjax.needle.outputs import RESULTS
from ratjax.train import watch

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """A run and its folder; what it has come to is read from the disk."""

    run: Run
    folder: pathlib.Path

    @property
    def results(self) -> pathlib.Path:
        return self.folder / "needle" / RESULTS

    @cached_property
    def steps(self) -> int:
        return study.steps(self.run.experiment)

    @cached_property
    def flops(self) -> float:
        return study.flops(self.run.experiment)

    def done_steps(self) -> int:
        """Steps that a checkpoint holds."""
        return max(checkpoint.steps(self.folder / "model"), default=0)

    @property
    def phase(self) -> str:
        """What is to be done next: `train`, `evaluate`, or nothing: `done`."""
        if self.results.exists():
            return "done"
        return "evaluate" if self.done_steps() >= self.steps else "train"

    @property
    def left(self) -> float:
        """Operations of training that are left, by which the longest run is found."""
        return self.flops * (1 - self.done_steps() / self.steps)

    def dense_score(self) -> float | None:
        """Mean strict dense score over the tasks, once there are results."""
        if not self.results.exists():
            return None
        rows = read_json(self.results)["results"]
        return statistics.fmean(r["score_strict"] for r in rows if r["method"] == "dense")

    def complaint(self, phase: str) -> str:
        """The line of a phase's output that says why it failed."""
        lines = (self.folder / f"{phase}.log").read_text("utf-8", "replace").split("\n")
        said = [line for line in lines if line.startswith("error:")] or list(filter(None, lines))
        return said[-1].strip() if said else "it said nothing"


@dataclasses.dataclass
class _Process:
    job: Job
    phase: str
    device: str | None
    process: subprocess.Popen
    began: float
    steps: int  # that a checkpoint held then


class Queue:
    """Works through jobs.

    Args:
      jobs: in any order; the longest are started first.
      path: the status file. Seconds of earlier sessions are read from it, and added to.
      devices: one process each; a device that is named twice has two.
      start: starts a phase of a job on a device.
      grace: seconds between SIGTERM and SIGKILL.

    Attributes:
      status: of each job by its name: `state` (waiting, training, evaluating, stopped, finished,
        failed), seconds of either phase by the clock, `device_seconds` (of processes that share a
        device each has its part), how often one was started, the last `error`.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        path: pathlib.Path,
        devices: Sequence[str | None],
        start: Callable[[Job, str, str | None], subprocess.Popen],
        grace: float,
    ):
        self.jobs, self.path, self.devices = list(jobs), path, list(devices)
        self._start, self._grace = start, grace
        self._running: list[_Process] = []
        self._counted = time.monotonic()
        self._stopping = False
        self.status = self._read()
        for job in jobs:
            earlier = self.status.get(job.run.name, {})
            state = "finished" if job.phase == "done" else "waiting"
            seconds = ("train_seconds", "evaluate_seconds", "device_seconds")
            fresh = {**dict.fromkeys(seconds, 0.0), "starts": 0}
            self.status[job.run.name] = {**fresh, **earlier, "state": state, "error": None}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            return read_json(self.path)["runs"]
        except FileNotFoundError:
            return {}

    def stop(self) -> None:
        """Ends all that runs as soon as it has saved; nothing else is started."""
        self._stopping = True

    def work(self, deadline: float) -> list[str]:
        """Runs what is not finished until it is, or until `deadline` of `time.monotonic`.

        Returns:
          A line for each job that failed. Those are tried again by the next call alone.
        """
        waiting = sorted((j for j in self.jobs if j.phase != "done"), key=lambda j: -j.left)
        self._write()
        try:
            while self._running or (waiting and not self._stopping):
                if time.monotonic() >= deadline:
                    self.stop()
                if self._stopping:
                    self._end()
                    continue
                free = Counter(self.devices) - Counter(one.device for one in self._running)
                for device in self.devices:
                    if waiting and free[device]:
                        free[device] -= 1
                        job = waiting.pop(0)
                        self._begin(job, job.phase, device)
                time.sleep(POLL_SECONDS)
                self._count()
                for one in [p for p in self._running if p.process.poll() is not None]:
                    self._take(one)
        finally:
            self._end()
        return [
            f"{job.run.name}: {error}"
            for job in self.jobs
            if (error := self.status[job.run.name]["error"]) is not None
        ]

    def _count(self) -> None:
        """Gives each process its part of its device's time since the last call."""
        now = time.monotonic()
        sharing = Counter(one.device for one in self._running)
        for one in self._running:
            part = (now - self._counted) / sharing[one.device]
            self.status[one.job.run.name]["device_seconds"] += part
        self._counted = now

    def _begin(self, job: Job, phase: str, device: str | None) -> None:
        self._count()
        process = self._start(job, phase, device)
        began = time.monotonic()
        self._running.append(_Process(job, phase, device, process, began, job.done_steps()))
        status = self.status[job.run.name]
        status["state"] = {"train": "training", "evaluate": "evaluating"}[phase]
        status["starts"] += 1
        self._write()

    def _take(self, one: _Process) -> None:
        """Takes note of a process that has ended, and starts what follows it."""
        self._running.remove(one)
        status = self.status[one.job.run.name]
        status[f"{one.phase}_seconds"] += time.monotonic() - one.began
        following = one.job.phase
        if following == "done":
            status["state"] = "finished"
        elif self._hung(one) and not self._stopping:
            self._begin(one.job, one.phase, one.device)
        elif one.process.returncode and not self._stopping:
            status["state"], status["error"] = "failed", one.job.complaint(one.phase)
        elif self._stopping:
            status["state"] = "stopped"
        elif following == one.phase:  # ended well, and yet there is more: another told it to stop
            status["state"], status["error"] = "failed", f"launch.{one.phase} was stopped"
        else:
            self._begin(one.job, following, one.device)
        self._write()

    @staticmethod
    def _hung(one: _Process) -> bool:
        """Whether the watchdog ended a training that had got further: it may get further again."""
        return one.process.returncode == watch.STATUS and one.job.done_steps() > one.steps

    def _end(self) -> None:
        """Tells every process to end, waits for it, and kills what does not."""
        self._stopping = self._stopping or bool(self._running)
        for one in self._running:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + self._grace
        for one in list(self._running):
            try:
                one.process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            self._count()
            self._take(one)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"runs": self.status})
