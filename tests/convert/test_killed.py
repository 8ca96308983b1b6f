"""Killing a conversion leaves either no target or a complete one."""

import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import ratjax
from convert.checkpoints import write_olmo2
from convert.measure_memory import ROOT
from ratjax.config.presets import preset
from ratjax.convert import convert, plan
from ratjax.convert.folder import open_tensors
from ratjax.model.checkpoint import CHECKPOINTS, check_seal

# Converts (or exports) again and again, so that a kill at any moment falls into a conversion.
# The last argument, where it is not empty, names a moment of the first conversion at which the
# child kills itself: before or after a folder takes its final name.
CHILD = """
import os, pathlib, signal, sys
from ratjax.convert import convert, export, plan
kind, source, folder, moment = sys.argv[1:]
if kind == 'convert':
    planned = plan(source, add_memory='near_identity')
    work = lambda target: convert(target, planned)
else:
    work = lambda target: export(source, target, file_bytes=200_000)
rename = os.replace
def replace(old, new):
    last = pathlib.Path(new) == pathlib.Path(folder) / '0'
    if last and moment == 'before':
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
    if last and moment == 'after':
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
print('ready', flush=True)
for number in range(1000):
    work(pathlib.Path(folder) / str(number))
"""


def kill(kind: str, source, folder, delay: float | None = None, moment: str = "") -> None:
    """Starts the child; kills it `delay` seconds after its first conversion begins."""
    folder.mkdir()
    command = [sys.executable, "-c", CHILD, kind, str(source), str(folder), moment]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        if delay is not None:
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        assert child.wait(120) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def targets(folder) -> list[pathlib.Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def parts_left(folder) -> int:
    return sum(entry.name.startswith(".") for entry in folder.iterdir())


class Converted:
    """What `convert` is to write, compared with what it wrote."""

    kind = "convert"

    def __init__(self, place):
        self.source = write_olmo2(place / "source", preset("tiny"), files=2)
        self.expected = plan(str(self.source), add_memory="near_identity").parts

    def check(self, target):
        check_seal(target / CHECKPOINTS / "0")
        assert (target / CHECKPOINTS / "0" / "files.json").exists()
        found = ratjax.inspect(target)
        assert found.parameters.keys() == self.expected.keys()
        for name, part in self.expected.items():
            everything = tuple(slice(None) for _ in part.shape)
            np.testing.assert_array_equal(found.read(name), part.read(everything))


class Exported:
    """What `export` is to write, compared with what it wrote."""

    kind = "export"

    def __init__(self, place):
        self.published = write_olmo2(place / "published", preset("tiny"), files=2)
        self.source = place / "source"
        convert(self.source, plan(str(self.published), add_memory="near_identity"))

    def check(self, target):
        before, after = open_tensors(self.published), open_tensors(target)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.view().tobytes() == after[name].view().tobytes()
        plan(str(target))  # config, tokenizer and memory fit as well


@pytest.fixture(scope="module", params=[Converted, Exported], ids=lambda case: case.kind)
def case(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.kind))


def repeat(case, tmp_path, times: int, seed: int) -> None:
    """Kills `times` conversions, and more until one was killed in the middle."""
    draw = random.Random(seed)
    interrupted = number = 0
    while number < times or (not interrupted and number < times + 20):
        folder = tmp_path / str(number)
        kill(case.kind, case.source, folder, delay=draw.uniform(0, 4))
        for target in targets(folder):
            case.check(target)
        interrupted += parts_left(folder)
        number += 1
        shutil.rmtree(folder)
    assert interrupted, "no kill fell into a conversion: the test shows nothing"


@pytest.mark.slow
def test_many_kills(case, tmp_path):
    repeat(case, tmp_path, times=8, seed=1)


def test_just_before_it_takes_its_name_there_is_no_target(case, tmp_path):
    kill(case.kind, case.source, tmp_path / "out", moment="before")
    assert not targets(tmp_path / "out")
    assert parts_left(tmp_path / "out") == 1


def test_once_it_has_its_name_it_is_complete(case, tmp_path):
    kill(case.kind, case.source, tmp_path / "out", moment="after")
    (target,) = targets(tmp_path / "out")
    case.check(target)
    assert not parts_left(tmp_path / "out")


@pytest.mark.parametrize("delay", [0, 0.02, 0.2])
def test_a_polite_kill_removes_what_was_begun(delay, tmp_path):
    source = write_olmo2(tmp_path / "source", preset("tiny"))
    command = [sys.executable, "-m", "launch.convert", f"--source={source}"]
    folder = tmp_path / "out"
    folder.mkdir()
    child = subprocess.Popen(
        [*command, f"--target={folder / 'target'}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not any(folder.iterdir()) and child.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    child.terminate()
    _, errors = child.communicate()
    if child.returncode in (0, -signal.SIGTERM):  # it had finished before the signal came
        assert targets(folder) == [folder / "target"]
        assert not parts_left(folder)
        check_seal(folder / "target" / CHECKPOINTS / "0")
    else:
        assert child.returncode == 130
        assert errors.splitlines()[-1] == f"error: interrupted: {folder / 'target'} was not written"
        assert "Traceback" not in errors
        assert not list(folder.rglob("*"))
