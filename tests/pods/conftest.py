"""Runs `launch.pods` in this process, with Google's command line real, missing or made up."""

import os
import pathlib
import sys

import pytest
from absl import flags

from launch import command
from launch.pods import __main__ as pods_main
from ratjax.errors import InputError

WHERE = ("--pod=demo", "--zone=us-east5-a", "--project=lab")
POD = (*WHERE, "--topology=v5p:4x4x4")
TRAIN = (
    "python", "-m", "launch.train", "--config=experiments/olmo2_7b_memory.py",
    "--workdir=gs://bucket/run one", "--coordinator=auto",
)  # fmt: skip


@pytest.fixture
def pods(monkeypatch, capsys):
    """Runs a command line: (exit status, lines of stdout, of stderr)."""

    def run(*arguments):
        monkeypatch.setattr(command, "FLAGS", flags.FlagValues())
        monkeypatch.setattr(command, "revision", lambda: "0123abc+changes")
        monkeypatch.setattr(sys, "argv", ["launch.pods", *arguments])
        capsys.readouterr()
        try:
            line = pods_main.split(sys.argv)
            pods_main.define()
            rest = command.parse([sys.argv[0], *line.flags])
            status = command.guarded(lambda: pods_main.act(line), rest)
        except InputError as error:
            status = command.fail(error)
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run


@pytest.fixture
def path(monkeypatch, tmp_path):
    """A folder that programs are looked for in before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(name, text):
        target = folder / name
        target.write_text(text)
        target.chmod(0o755)
        return target

    install.folder = pathlib.Path(folder)
    return install
