"""Runs commands in this process, each with flags of its own."""

import sys

import numpy as np
import pytest
from absl import flags

from launch import command
from ratjax.data import write_rows

EXPERIMENT = """
from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.model import ModelConfig
from ratjax.config.overrides import to_config_dict
from ratjax.config.train import TrainConfig

def get_config():
    stages = (
        DataStage(2, 8, 4, ((r"{folder}/rows", 1.0),)),
        DataStage(2, 8, 4, ((r"{folder}/rows", 1.0),)),
    )
    config = to_config_dict(
        Experiment(
            "tiny",
            ModelConfig(32, 16, 1, 2, 1, 8, 16),
            train=TrainConfig(learning_rate=1e-3, log_every=1, recurrence_dilation=4),
            data=DataConfig(stages),
        )
    )
    {edit}
    return config
"""


@pytest.fixture
def experiment_file(tmp_path):
    """Writes an experiment file; `edit` is a statement about its `config`."""

    def write(edit="pass", name="tiny.py"):
        path = tmp_path / name
        path.write_text(EXPERIMENT.format(folder=tmp_path, edit=edit))
        return path

    return write


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (20, 8), dtype=np.int32)
    write_rows(tmp_path / "rows", tokens, np.ones((20, 8), bool))


@pytest.fixture
def launch(monkeypatch, capsys):
    """Runs a command's `main` on a command line: (exit status, lines of stdout, of stderr)."""

    def run(main, define, *arguments):
        monkeypatch.setattr(command, "FLAGS", flags.FlagValues())
        # ml_collections looks for overrides here
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        define()
        try:
            status = command.guarded(main, command.parse(sys.argv))
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run
