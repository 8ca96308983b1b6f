"""Training commands that the tests here can end as they like."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from ratjax.data import write_rows
from ratjax.model.checkpoint import load_model
from ratjax.model.parameters import to_parameters
from tests.launch.conftest import EXPERIMENT
from tests.train.conftest import read_metrics
from tests.train.test_loop import TIMES

ROOT = pathlib.Path(__file__).parents[2]
TOTAL, EVERY = 30, 3  # steps, and those between checkpoints
EDIT = f"config.backbone = 'attention'; config.train.steps = {TOTAL}; config.train.keep = 3; "
EDIT += f"config.train.checkpoint_every = {EVERY}; config.train.on_bad_step = 'skip'"


class Zygote:
    """A process that forks a training command on request."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faults" / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        )

    def start(self, output: pathlib.Path, *arguments: str) -> int:
        """Begins a command; returns its process id."""
        print(json.dumps([str(output), *arguments]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The status of the command that was started last."""
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def zygote():
    process = Zygote()
    yield process
    process.close()


class Victim:
    """A run of `launch.train` in a folder, started again and again."""

    def __init__(self, zygote: Zygote, workdir: pathlib.Path, config: pathlib.Path):
        self.zygote, self.workdir = zygote, workdir
        self.arguments = f"--config={config}", f"--workdir={workdir}"
        self.output = workdir.with_suffix(".txt")
        self.pid, self.started = 0, 0.0

    def start(self, *more: str) -> None:
        self.started = time.time()
        self.pid = self.zygote.start(self.output, *self.arguments, *more)

    def finish(self) -> int:
        """Lets the command come to its end; returns its status."""
        return self.zygote.wait()

    def is_over(self) -> bool:
        """Whether it has ended by itself (the zygote has not been asked yet)."""
        try:
            state = pathlib.Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return True
        return state.rpartition(")")[2].split()[0] == "Z"

    def signal(self, number: int) -> None:
        if not self.is_over():
            os.kill(self.pid, number)

    def lines(self) -> int:
        """Lines of its metrics so far."""
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def saving(self) -> bool:
        """Whether the command that was started last is writing a checkpoint, or died writing it."""
        root = self.workdir / "checkpoints"
        try:
            found = [entry for entry in os.scandir(root) if "tmp" in entry.name]
            return any(entry.stat().st_ctime > self.started for entry in found)
        except FileNotFoundError:
            return False

    def until(self, condition) -> bool:
        """Waits for something to come true; False where the command ends before."""
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, self.said()
            if self.is_over():
                return False
            time.sleep(0.001)
        return True

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def losses(self) -> list[dict]:
        lines = read_metrics(self.workdir)
        return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="session")
def victim(zygote, tmp_path_factory):
    """Makes a victim in a folder of that name."""
    root = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (20, 8), dtype=np.int32)
    write_rows(root / "rows", tokens, rng.random((20, 8)) < 0.8)
    config = root / "tiny.py"
    config.write_text(EXPERIMENT.format(folder=root, edit=EDIT))
    return lambda name: Victim(zygote, root / name, config)


@pytest.fixture(scope="session")
def undisturbed(victim):
    """The run that nothing happens to."""
    run = victim("undisturbed")
    run.start()
    assert run.finish() == 0, run.said()
    assert [line["step"] for line in run.losses()] == list(range(1, TOTAL + 1))
    return run


def assert_same(run: Victim, undisturbed: Victim) -> None:
    """To the last bit: every loss, and the parameters at the end."""
    assert run.losses() == undisturbed.losses()
    ours, theirs = (to_parameters(load_model(each.workdir)) for each in (run, undisturbed))
    for name in theirs:
        assert np.array_equal(ours[name], theirs[name]), name
