import json
import sys
import types

import jax
import pytest

from launch import command, processes
from launch import train as launch_train
from ratjax.data import Rows
from ratjax.model.checkpoint import load_model, steps
from ratjax.train import TrainingStopped


def define():
    command.define_config()
    command.define_workdir("a folder")
    command.define_dry_run()
    processes.define()


@pytest.fixture
def train(launch):
    return lambda *arguments: launch(launch_train.main, define, *arguments)


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_dry_run(train, experiment_file, tmp_path, rows):
    flags = (f"--config={experiment_file()}", f"--workdir={tmp_path}/run", "--dry_run")
    status, out, err = train(*flags, "--config.backbone=memory", "--config.train.steps=3")
    assert (status, err) == (0, [])
    # embedding and head 32 x 16, q and out 16 x 16, k and v 16 x 8, feed-forward 3 x 16 x 16,
    # norms 4 x 16 + 8, gate 16 x 8 with bias 8; tokens: 3 steps of 4 x 8
    summary = {"steps": 3, "parameters": 2768, "tokens": 96, "backbone": "memory"}
    assert json.loads(out[-1]) == summary
    status, out, _ = train(*flags)
    assert status == 0
    both = json.loads(out[-1])
    assert (both["backbone"], both["steps"], both["tokens"]) == ("both", 4, 128)
    assert [run["backbone"] for run in both["runs"]] == ["attention", "memory"]
    assert not (tmp_path / "run").exists()


def test_dry_run_warns_of_what_is_not_there(train, experiment_file, tmp_path):
    status, out, err = train(
        f"--config={experiment_file()}",
        f"--workdir={tmp_path}/run",
        "--dry_run",
        "--config.data.tokenizer=nowhere.json",
        "--config.train.init_from=no/model",
    )
    assert status == 0 and json.loads(out[-1])["steps"] == 4
    assert [line.split(": ")[0] for line in err] == ["warning"] * 3
    for part in ("rows: data folder does not exist", "nowhere.json", "no/model"):
        assert any(part in line for line in err)


def test_dry_run_refuses_what_is_wrong(train, experiment_file, tmp_path, rows):
    flags = (f"--config={experiment_file()}", f"--workdir={tmp_path}/run", "--dry_run")
    for override, message in (
        ("--config.data.stages[0].sequence_length=16", "its rows have 8 tokens"),
        ("--config.train.microbatches=3", "must divide data.stages.batch_size=4"),
        ("--config.data.prepare=json:dumpz", "no such function"),
        ("--config.model.num_kv_heads=3", "must divide model.num_heads=2"),
    ):
        status, _, err = train(*flags, override)
        assert status == 2 and len(err) == 1 and message in err[0], override


def test_missing_data_is_an_error_and_leaves_nothing(train, experiment_file, tmp_path):
    status, _, err = train(f"--config={experiment_file()}", f"--workdir={tmp_path}/run")
    assert status == 2 and "rows: data folder does not exist" in err[0]
    assert not (tmp_path / "run").exists()


def test_one_command_trains_the_pair_and_resumes(train, experiment_file, tmp_path, monkeypatch):
    """With data that the experiment's own function prepares."""
    import numpy as np

    from ratjax.data import write_rows

    def prepare(experiment):
        assert experiment.name == "tiny"
        tokens = np.random.default_rng(0).integers(0, 32, (20, 8), dtype=np.int32)
        write_rows(tmp_path / "rows", tokens, np.ones((20, 8), bool))

    module = types.ModuleType("preparation")
    module.make = prepare
    monkeypatch.setitem(sys.modules, "preparation", module)
    run = tmp_path / "run"
    path = experiment_file()
    status, out, err = train(
        f"--config={path}", f"--workdir={run}", "--config.data.prepare=preparation:make"
    )
    assert (status, err) == (0, [])
    assert len(Rows(tmp_path / "rows", 8)) == 20
    for backbone in ("attention", "memory"):
        assert f"{run}/{backbone}: trained 4 steps" in out
        lines = read_metrics(run / backbone)
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        card = json.loads((run / backbone / "model.json").read_text())
        assert card["provenance"]["backbone"] == backbone
        assert card["provenance"]["train"]["learning_rate"] == 1e-3
        assert (load_model(run / backbone).config.memory is None) == (backbone == "attention")

    status, out, err = train(f"--config={path}", f"--workdir={run}", "--config.backbone=memory")
    assert status == 0 and steps(run) == [4]  # one backbone trains in the folder itself

    # and starts from its own folder where the pair's is named
    status, out, err = train(
        f"--config={path}",
        f"--workdir={tmp_path}/next",
        f"--config.train.init_from={run}",
        "--config.backbone=attention",
    )
    assert status == 0, err
    card = json.loads((tmp_path / "next" / "model.json").read_text())
    assert card["provenance"]["train"]["init_from"] == f"{run}/attention"


def test_divergence_is_one_line_and_status_1(train, experiment_file, tmp_path, monkeypatch):
    def diverge(*_):
        raise TrainingStopped("loss is nan at step 3")

    monkeypatch.setattr(launch_train, "train", diverge)
    status, _, err = train(f"--config={experiment_file()}", f"--workdir={tmp_path}/run")
    assert (status, err) == (1, ["error: loss is nan at step 3"])


def test_a_full_device_is_one_line_that_names_fields(train, experiment_file, tmp_path, monkeypatch):
    def exhaust(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes."
        )

    monkeypatch.setattr(launch_train, "train", exhaust)
    status, _, err = train(f"--config={experiment_file()}", f"--workdir={tmp_path}/run")
    assert status == 1 and len(err) == 1
    assert err[0].startswith(
        "error: out of memory (2.00 GiB more were asked for): raise train.micro"
    )

    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")

    monkeypatch.setattr(launch_train, "train", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
        train(f"--config={experiment_file()}", f"--workdir={tmp_path}/run")


def test_workdirs_in_buckets_are_gs_alone(train, experiment_file, tmp_path, monkeypatch):
    status, _, err = train(f"--config={experiment_file()}", "--workdir=s3://bucket/run")
    assert status == 2 and err == [
        "error: s3://bucket/run: neither a folder nor a bucket (gs://...)"
    ]
    seen = []
    monkeypatch.setattr(launch_train, "train", lambda *given: bool(seen.append(given[3])))
    train(f"--config={experiment_file()}", "--workdir=gs://bucket/run")
    assert [str(folder) for folder in seen] == ["gs://bucket/run/attention"]


def test_dry_run_looks_for_held_out_folders(train, experiment_file, tmp_path, rows):
    held_out = "config.train.held_out = ((r'nowhere/held', 1.0),)"
    path = experiment_file(held_out)
    status, _, err = train(f"--config={path}", f"--workdir={tmp_path}/run", "--dry_run")
    assert status == 0 and err == [
        "warning: nowhere/held: data folder does not exist; make it first"
    ]


def test_a_signal_ends_the_pair_with_status_0(train, experiment_file, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(launch_train, "train", lambda *args: bool(calls.append(args)))
    status, out, err = train(f"--config={experiment_file()}", f"--workdir={tmp_path}/run")
    assert (status, err, len(calls)) == (0, [], 1)
    assert "stopped by a signal" in out[-1]
