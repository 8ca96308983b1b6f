"""Killing a conversion leaves either no target or a complete one."""

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
from ratjax.convert import plan
from ratjax.model.checkpoint import CHECKPOINTS, check_seal

# Converts again and again, so that a kill at any moment falls into a conversion.
CHILD = """
import pathlib, sys
from ratjax.convert import convert, plan
planned = plan(sys.argv[1], add_memory='near_identity')
print('ready', flush=True)
for number in range(1000):
    convert(pathlib.Path(sys.argv[2]) / str(number), planned)
    print(number, flush=True)
"""


def killed_after(source, folder, delay: float) -> None:
    """Starts the child, waits for its first conversion to begin, kills it `delay` later."""
    command = [sys.executable, "-c", CHILD, str(source), str(folder)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(delay)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()


def check_all_complete(folder, expected) -> int:
    targets = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    for target in targets:
        check_seal(target / CHECKPOINTS / "0")
        assert (target / CHECKPOINTS / "0" / "files.json").exists()
        found = ratjax.inspect(target)
        assert found.parameters.keys() == expected.keys()
        for name, part in expected.items():
            everything = tuple(slice(None) for _ in part.shape)
            np.testing.assert_array_equal(found.read(name), part.read(everything))
    return len(targets)


def repeat(tmp_path, times: int, seed: int) -> None:
    source = write_olmo2(tmp_path / "source", preset("tiny"), files=2)
    expected = plan(str(source), add_memory="near_identity").parts
    draw = random.Random(seed)
    complete = interrupted = 0
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed_after(source, folder, draw.uniform(0, 4))
        complete += check_all_complete(folder, expected)
        interrupted += any(entry.name.startswith(".") for entry in folder.iterdir())
        shutil.rmtree(folder)
    assert interrupted, "no kill fell into a conversion: the test shows nothing"


def test_two_kills(tmp_path):
    repeat(tmp_path, times=2, seed=0)


@pytest.mark.slow
def test_many_kills(tmp_path):
    repeat(tmp_path, times=25, seed=1)


def test_a_polite_kill_removes_what_was_begun(tmp_path):
    source = write_olmo2(tmp_path / "source", preset("tiny"))
    command = [sys.executable, "-m", "launch.convert", f"--source={source}"]
    folder = tmp_path / "out"
    folder.mkdir()
    child = subprocess.Popen([*command, f"--target={folder / 'target'}"], cwd=ROOT)
    while not any(folder.iterdir()) and child.poll() is None:
        time.sleep(0.002)
    child.terminate()
    status = child.wait()
    if status:  # else it had finished before the signal came
        assert not any(folder.iterdir())
