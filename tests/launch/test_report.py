"""The report command: flags in, a folder out, one line for bad input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needle_report import synthetic

ROOT = Path(__file__).resolve().parents[2]


def _report(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.report", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _run(folder, **options):
    chosen = synthetic.settings(methods=("quest",), budgets=("1/4",))
    return synthetic.write_run(
        folder, tasks=synthetic.TASKS[:2], samples=3, chosen=chosen, metrics=False, **options
    )


def test_two_runs_become_one_report(tmp_path):
    first = _run(tmp_path / "a", run="a", train_seed=0)
    second = _run(tmp_path / "b", run="b", train_seed=1)
    done = _report(f"--runs={first},{second}", f"--target={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(tmp_path / "out" / "index.html"))
    text = (tmp_path / "out" / "index.html").read_text()
    assert f"python -m launch.report --runs={first},{second}" in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--target=x"], "runs=[]"),
        (["--runs=nowhere"], "target=''"),
        (["--runs=nowhere", "--target={tmp}/out"], "nowhere/results.json: no such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, arguments, said):
    done = _report(*(text.replace("{tmp}", str(tmp_path)) for text in arguments))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert said in line
    assert list(tmp_path.iterdir()) == []
