"""The evaluate command: a trained folder in, results.json out; bad input in one line."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl import flags
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from launch import command, processes
from launch import evaluate as launch_evaluate
from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.model.checkpoint import save_model
from ratjax.needle import load_essays
from ratjax.needle.essays import SHIPPED
from ratjax.needle.journal import Journal
from tests.decoders import initial
from tests.emulated_devices import environment

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = """
from ratjax.config.experiment import Experiment
from ratjax.config.needle import NeedleConfig
from ratjax.config.overrides import to_config_dict
from ratjax.config.presets import preset

def get_config():
    needle = NeedleConfig(
        tasks=("niah_single_1",), context_length=192, tokens_to_generate=4, budgets=("1/4",),
        methods=("quest",), block_size=16, essays=r"{essays}", batch_size=2,
    )
    return to_config_dict(Experiment("small", preset("tiny"), samples=2, needle=needle))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model folders of an untrained pair, and the experiment file."""
    root = tmp_path_factory.mktemp("pair")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([load_essays(SHIPPED).text], trainer)
    tokenizer.save(str(root / "tokenizer.json"))
    for backbone, memory in (("attention", None), ("memory", MemoryConfig())):
        config = with_memory(preset("tiny"), memory)
        model = initial(config)
        save_model(root / "models" / backbone, model, root / "tokenizer.json", {})
    (root / "experiment.py").write_text(EXPERIMENT.format(essays=SHIPPED))
    return root


@pytest.fixture
def evaluate(launch, folder):
    def define():
        command.define_config()
        command.define_workdir("a folder")
        command.define_dry_run()
        processes.define()
        flags.DEFINE_string("checkpoint", None, "models", command.FLAGS)

    def run(checkpoint, *arguments, config=folder / "experiment.py"):
        return launch(
            launch_evaluate.main,
            define,
            f"--config={config}",
            f"--checkpoint={checkpoint}",
            *arguments,
        )

    return run


def complaints(lines):
    """Without those on progress, of which a slow machine prints some."""
    return [line for line in lines if line.startswith(("warning", "error"))]


def test_evaluates_the_pair(evaluate, folder, tmp_path):
    status, _, err = evaluate(folder / "models", f"--workdir={tmp_path / 'needle'}")
    assert (status, complaints(err)) == (0, [])
    written = json.loads((tmp_path / "needle" / "results.json").read_text())
    cells = [(r["backbone"], r["method"], r["task"]) for r in written["results"]]
    assert cells == [
        (backbone, method, "niah_single_1")
        for backbone in ("attention", "memory")
        for method in ("dense", "quest")
    ]
    meta = written["meta"]
    assert meta["parameters"]["memory"] > meta["parameters"]["attention"]
    assert {"versions", "device", "commit", "config"} <= set(meta)
    lines = (tmp_path / "needle" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 2
    names = {path.name for path in (tmp_path / "needle").iterdir()}
    assert names == {"results.json", "predictions.jsonl", "prompts.jsonl", "timing.json"}
    assert "date" not in meta and "date" in read_timing(tmp_path / "needle")["meta"]
    assert len(read_timing(tmp_path / "needle")["timing"]) == 4


def read_timing(folder):
    return json.loads((folder / "timing.json").read_text())


SAME = ("results.json", "predictions.jsonl", "prompts.jsonl")


def test_killed_and_resumed_ends_with_the_same_bytes(evaluate, folder, tmp_path, monkeypatch):
    samples = "--config.samples=5"  # three batches
    whole = tmp_path / "whole"
    assert evaluate(folder / "models", f"--workdir={whole}", samples)[0] == 0
    resumed, journal = tmp_path / "resumed", tmp_path / "resumed" / "journal.jsonl"
    add, runs = Journal.add, []

    def dying(self, lines):
        if lines and len(self.lines) > runs[-1]:
            raise KeyboardInterrupt
        return add(self, lines)

    # After the first batch, in the middle, within the second backbone.
    for stop in (3, 9, 20):
        runs.append(stop)
        monkeypatch.setattr(Journal, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder / "models", f"--workdir={resumed}", samples)
        assert not (resumed / "results.json").exists()
        with journal.open("ab") as file:
            file.write(b'{"backbone": "attenti')
    before = len(journal.read_text().splitlines())
    answered = []
    monkeypatch.setattr(Journal, "add", lambda self, new: (answered.extend(new), add(self, new)))
    status, _, err = evaluate(folder / "models", f"--workdir={resumed}", samples)
    assert status == 0
    # One after each kill.
    assert len(complaints(err)) == 3 and all("journal.jsonl: its last 21 bytes" in x for x in err)
    for name in SAME:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not journal.exists()
    # Only what was missing was run: 2 backbones x 2 settings x (5 answers and 3 batches' times).
    assert before - 1 + len(answered) == 2 + 2 * 2 * (5 + 3)


def process(folder, workdir, *more, devices=1):
    """The command in a process of its own, with this many CPU devices."""
    command_line = [
        sys.executable, "-m", "launch.evaluate", f"--config={folder / 'experiment.py'}",
        f"--checkpoint={folder / 'models'}", f"--workdir={workdir}", "--config.samples=5", *more,
    ]  # fmt: skip
    return subprocess.Popen(command_line, cwd=ROOT, env=environment(devices))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2], ids=["one-process", "two-processes"])
def test_devices_and_processes_find_the_same(evaluate, folder, tmp_path, count):
    assert evaluate(folder / "models", f"--workdir={tmp_path}/one", "--config.samples=5")[0] == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        join = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={count}"]
    mesh = ("--config.mesh.data=2", "--config.mesh.tensor=2")
    running = [
        process(
            folder, tmp_path / "many", *mesh, *([*join, f"--process={i}"] if count > 1 else []),
            devices=4 // count,
        )
        for i in range(count)
    ]  # fmt: skip
    assert [each.wait() for each in running] == [0] * count
    for name in ("predictions.jsonl", "prompts.jsonl"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, many = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "many")
    )
    assert many["results"] == one["results"]
    assert (many["meta"]["device_count"], many["meta"]["config"]["mesh"]["tensor"]) == (4, 2)


def test_a_mesh_that_does_not_fit_is_one_line(evaluate, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    for given, message in (
        ({"context": 2}, "mesh.context=2: evaluation shares out prompts and heads"),
        ({"tensor": 8}, "mesh.tensor=8: must divide model.num_heads=4"),
        ({"data": 3}, "there are 8 devices"),
    ):
        fields = [f"--config.mesh.{axis}={size}" for axis, size in given.items()]
        status, _, err = evaluate(folder / "models", f"--workdir={tmp_path}/n", *fields)
        assert status == 2 and len(err) == 1 and message in err[0]
    assert not (tmp_path / "n").exists()


@pytest.mark.slow
def test_killed_outright_and_resumed(folder, tmp_path):
    journal = tmp_path / "killed" / "journal.jsonl"
    running = process(folder, tmp_path / "killed")
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 6):
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    for name in ("killed", "whole"):
        assert process(folder, tmp_path / name).wait() == 0
    for name in SAME:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_evaluation_in_the_same_folder_is_refused(evaluate, folder, tmp_path, monkeypatch):
    def killed(self, batch, group, wanted):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ratjax.needle.runner.Runner.run", killed)
        evaluate(folder / "models", f"--workdir={tmp_path}/n")
    status, _, err = evaluate(folder / "models", f"--workdir={tmp_path}/n", "--config.samples=3")
    assert status == 2
    assert len(err) == 1 and "samples=2, not 3" in err[0] and "journal.jsonl" in err[0]


def test_weights_in_bfloat16(evaluate, folder, tmp_path):
    flags_ = (f"--workdir={tmp_path}/n", "--config.backbone=memory")
    status, _, err = evaluate(folder / "models", *flags_, "--config.needle.dtype=bfloat16")
    assert (status, complaints(err)) == (0, [])
    rows = json.loads((tmp_path / "n" / "results.json").read_text())["results"]
    # Keys and values take two bytes; the memory's state stays in float32.
    entries = rows[0]["cache_bytes"] - 8 * 2 * 2 * 16
    assert 100 < entries / (2 * 2 * 2 * 16 * 2) < 192


def test_dry_run_counts_cells_and_warns(evaluate, folder, tmp_path):
    status, out, err = evaluate(folder / "models", f"--workdir={tmp_path}/n", "--dry_run")
    assert (status, err) == (0, [])
    assert json.loads(out[-1]) == {"settings": 4, "tasks": 1, "cells": 4}
    status, out, err = evaluate("nowhere", f"--workdir={tmp_path}/n", "--dry_run")
    assert status == 0
    assert json.loads(out[-1])["cells"] == 4
    assert all(line.startswith("warning: nowhere") for line in err) and len(err) == 2
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.needle.budgets=('1/7',)", "whole number of tokens"),
        ("--config.needle.block_size=64", "multiple of needle.block_size"),
        ("--config.needle.tokens_to_generate=150", "too short for niah_single_1"),
        ("--config.needle.essays=no/such/folder", "no/such/folder"),
        ("--config.needle.budget=1/4", "budgets"),
        ("--config.samples=0", "samples=0"),
        ("--config.needle.tasks=('niah_single_4',)", "did you mean niah_single_3"),
        ("--config.needle.prefill_batch=3", "must divide needle.batch_size=2"),
    ],
)
def test_bad_input_is_one_line(evaluate, folder, tmp_path, override, message):
    arguments = (f"--workdir={tmp_path}/n", override)
    if "essays" in override:
        arguments += ("--config.needle.tasks=('niah_single_2',)",)
    status, _, err = evaluate(folder / "models", *arguments)
    assert status == 2
    assert len(err) == 1 and message in err[0]
    assert not (tmp_path / "n").exists()


def test_swapped_sets_need_a_memory(evaluate, folder, tmp_path):
    swapped = tmp_path / "experiment.py"
    fields = "methods=(), extra=(Setting('quest', 16, 3, '1/4', select_with='raw'),)"
    text = EXPERIMENT.format(essays=SHIPPED).replace('methods=("quest",)', fields)
    swapped.write_text(text.replace("import NeedleConfig", "import NeedleConfig, Setting"))
    workdir = f"--workdir={tmp_path}/n"
    for dry in ((), ("--dry_run",)):
        status, _, err = evaluate(folder / "models", workdir, *dry, config=swapped)
        assert status == 2 and len(err) == 1
        assert "original_select_with_raw" in err[0] and "attention has no memory" in err[0]
    assert not (tmp_path / "n").exists()
    flags_ = (workdir, "--config.backbone=memory", "--dry_run")
    status, out, err = evaluate(folder / "models", *flags_, config=swapped)
    assert (status, err) == (0, [])
    assert json.loads(out[-1])["settings"] == 2


def test_the_other_backbone_is_refused(evaluate, folder, tmp_path):
    status, _, err = evaluate(
        folder / "models" / "memory", f"--workdir={tmp_path}/n", "--config.backbone=attention"
    )
    assert status == 2
    assert "holds the memory backbone" in err[0]


def test_missing_checkpoints_are_one_line(evaluate, folder, tmp_path):
    status, _, err = evaluate("nowhere", f"--workdir={tmp_path}/n")
    assert (status, err) == (2, ["error: nowhere/attention: no such folder"])
    bare = tmp_path / "bare"
    shutil.copytree(folder / "models", bare)
    shutil.rmtree(bare / "memory" / "checkpoints")
    status, _, err = evaluate(bare, f"--workdir={tmp_path}/n")
    assert status == 2 and len(err) == 1 and "has no checkpoint yet" in err[0]
    assert not (tmp_path / "n").exists()


def test_a_tokenizer_without_digits_is_one_line(evaluate, folder, tmp_path):
    models_ = tmp_path / "models"
    shutil.copytree(folder / "models", models_)
    for path in models_.glob("*/tokenizer.json"):
        state = json.loads(path.read_text())
        vocabulary = state["model"]["vocab"]
        state["model"]["vocab"] = {
            (f"no{token}" if token in "0123456789" else token): number
            for token, number in vocabulary.items()
        }
        state["model"]["merges"] = []
        path.write_text(json.dumps(state))
    status, _, err = evaluate(models_, f"--workdir={tmp_path}/n")
    assert status == 2
    assert len(err) == 1 and "cannot express digits" in err[0]
    assert not (tmp_path / "n").exists()


def test_damaged_folders_are_refused(evaluate, folder, tmp_path):
    damaged = tmp_path / "models"
    shutil.copytree(folder / "models", damaged)
    card = damaged / "memory" / "model.json"
    small = json.loads(card.read_text())
    small["model"]["vocab_size"] = 300
    flags_ = (f"--workdir={tmp_path}/n", "--config.backbone=memory")
    card.write_text(json.dumps(small))
    status, _, err = evaluate(damaged / "memory", *flags_)
    assert status == 2 and len(err) == 1 and "vocab_size=300" in err[0]
    shutil.rmtree(damaged / "memory" / "checkpoints")
    status, _, err = evaluate(damaged / "memory", *flags_)
    assert status == 2 and len(err) == 1
