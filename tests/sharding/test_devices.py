"""Runs the tests in `devices/` on eight CPU devices, which a process must ask for at its start."""

import pathlib
import subprocess
import sys

import pytest

from tests.emulated_devices import environment

FOLDER = pathlib.Path(__file__).parent / "devices"
ROOT = FOLDER.parents[2]


def run(name: str, selection: str) -> None:
    # What NPROC is for, launch/processes.py says: commands set it themselves.
    variables = environment(8) | {"NPROC": "64"}
    variables.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-m", selection, str(FOLDER / f"{name}.py")],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "cases")
QUICK = "gradients"


def test_on_eight_devices():
    """A small one of them all; a process of eight devices takes long to start and to compile."""
    run(QUICK, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices_slow(name):
    run(name, "slow" if name == QUICK else "slow or not slow")
