"""The paper's tables as experiment files: all of the paper's rows, and what a dry run counts."""

import importlib
import json

import pytest

from launch import command, processes
from launch import evaluate as launch_evaluate
from ratjax.config.experiment import Experiment
from ratjax.config.overrides import from_mapping
from ratjax.errors import ConfigError
from ratjax.needle.report import paper
from ratjax.needle.settings import identity, pattern_of
from tests.launch.conftest import launch

__all__ = ["launch"]  # a fixture


def experiment(name, variant="paper"):
    module = importlib.import_module(f"experiments.needle.{name}")
    return from_mapping(Experiment, module.get_config(variant))


def paper_rows(checkpoints, selectors):
    """What Tables 3 to 5 hold of these checkpoints."""
    fields = ("backbone", "method", "block_size", "k", "budget", "selector")
    return {
        tuple(row[field] for field in fields)
        for row in paper._data()["rows"]
        if row["checkpoints"] == checkpoints and row["selector"] in selectors
    }


@pytest.mark.parametrize(
    ("name", "selectors", "others"),
    [
        # Beside the paper's rows: dense, and in Table 5 the methods' own selectors.
        ("table3_released", {"original"}, {"dense"}),
        ("table4_olmo2", {"original"}, {"dense"}),
        ("table5_random", {"random"}, {"dense", "quest", "moba", "snapkv"}),
    ],
)
def test_every_row_of_the_paper_is_there(name, selectors, others):
    found = experiment(name)
    needle = found.needle
    assert (found.samples, needle.context_length, len(needle.tasks)) == (500, 4096, 8)
    ours = {}
    for setting in needle.settings():
        pattern_of(setting)
        named = identity(setting)
        for checkpoint in needle.checkpoints:
            key = (
                checkpoint.backbone, named["method"], named["block_size"], named["k"],
                named["budget"], named["selector"],
            )  # fmt: skip
            ours.setdefault(key, []).append(named["selector_seed"])
    wanted = paper_rows(needle.paper_checkpoints, selectors)
    assert wanted <= ours.keys()
    assert {key[1] for key in ours.keys() - wanted} == others
    seeds = {tuple(ours[key]) for key in wanted}
    assert seeds == ({(0, 1, 2, 3, 4)} if "random" in selectors else {(0,)})


@pytest.mark.parametrize(
    ("name", "backbones", "settings"),
    [
        ("table3_released", 2, 13),
        ("table3_released:dilated", 2, 8),
        ("table4_olmo2", 2, 13),
        ("table4_olmo2:control", 3, 13),
        ("table4_olmo2:dilated", 2, 8),
        ("figure2_hit_rates", 2, 7),
        ("figure2_hit_rates:olmo2", 3, 7),
        ("table5_random", 2, 19),
        ("table5_random:control", 3, 19),
        ("table5_random:free", 2, 16),
        ("table5_random:golden", 2, 7),
        ("table5_random:swap", 1, 19),
    ],
)
def test_a_dry_run_counts_without_weights(launch, tmp_path, name, backbones, settings):
    def define():
        command.define_config()
        command.define_workdir("a folder")
        command.define_dry_run()
        processes.define()
        command.flags.DEFINE_string("checkpoint", None, "models", command.FLAGS)

    file, *variant = name.split(":")
    status, out, err = launch(
        launch_evaluate.main,
        define,
        f"--config=experiments/needle/{':'.join([f'{file}.py', *variant])}",
        f"--checkpoint={tmp_path}/models",
        f"--workdir={tmp_path}/run",
        "--config.samples=20",
        "--dry_run",
    )
    assert status == 0
    rows = backbones * settings
    assert json.loads(out[-1]) == {"settings": rows, "tasks": 8, "cells": 8 * rows}
    assert len(out) == rows + 1
    assert len(err) == backbones and all("no such folder; " in line for line in err)
    assert not (tmp_path / "run").exists()


def test_settings_of_one_file_have_names_of_their_own():
    for name, variants in {
        "table3_released": ("paper", "dilated"),
        "table4_olmo2": ("paper", "control", "dilated"),
        "table5_random": ("paper", "control", "free", "golden", "swap"),
    }.items():
        for variant in variants:
            named = [
                tuple(identity(s).values()) for s in experiment(name, variant).needle.settings()
            ]
            assert len(set(named)) == len(named)


def test_an_unknown_variant_is_named():
    with pytest.raises(ConfigError, match="variant='controls': did you mean control"):
        experiment("table4_olmo2", "controls")
