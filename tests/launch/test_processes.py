"""Runs of several processes, each with its own CPU devices."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import command, processes
from launch import train as launch_train
from ratjax.data import write_rows
from ratjax.model.checkpoint import load_model, steps
from ratjax.model.parameters import to_parameters
from tests.emulated_devices import environment

ROOT = pathlib.Path(__file__).parents[2]
MESH = "config.mesh = dict(data=2, fsdp=2, tensor=2, context=1)"
# Eight sequences for a mesh that cuts batches into four; two heads for two devices.
WIDER = "config.data.stages[0].batch_size = config.data.stages[1].batch_size = 8"
HEADS = "config.model.num_kv_heads = 2"
EDIT = f"{MESH}; {WIDER}; {HEADS}; config.backbone = 'memory'; config.train.checkpoint_every = 2"


def define():
    command.define_config()
    command.define_workdir("a folder")
    command.define_dry_run()
    processes.define()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--processes=2",), "--processes=2: needs --coordinator"),
        (("--coordinator=localhost:1",), "needs --processes and --process"),
        (
            ("--coordinator=localhost:1", "--processes=2", "--process=2"),
            "--process=2: must be below --processes=2",
        ),
    ],
)
def test_flags_that_do_not_go_together(launch, experiment_file, tmp_path, given, message):
    arguments = (f"--config={experiment_file()}", f"--workdir={tmp_path}/run", *given)
    status, _, err = launch(launch_train.main, define, *arguments)
    assert status == 2 and message in err[0]


def test_a_dry_run_only_warns_of_devices_that_are_not_there(launch, experiment_file, tmp_path):
    arguments = (f"--config={experiment_file()}", f"--workdir={tmp_path}/run")
    status, _, err = launch(launch_train.main, define, *arguments, "--config.mesh.fsdp=4")
    assert status == 2 and err == [
        "error: mesh.data=-1: the 1 devices are no multiple of 4, the product of the others "
        "(mesh.data=-1 * mesh.fsdp=4 * mesh.tensor=1 * mesh.context=1)"
    ]
    arguments = (*arguments, "--dry_run", "--config.mesh.fsdp=4")
    status, out, err = launch(launch_train.main, define, *arguments)
    assert status == 0 and err[0].startswith("warning: mesh.data=-1")
    assert json.loads(out[-1])["steps"] == 4


def test_what_is_missing_is_made_by_the_first_and_then_by_the_others(monkeypatch):
    """The order of events in each of two processes."""
    for index, wanted in ((0, ["work", "meet", "meet"]), (1, ["meet", "work", "meet"])):
        events = []
        monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
        monkeypatch.setattr(
            processes.multihost_utils,
            "sync_global_devices",
            lambda name, events=events: events.append("meet"),
        )
        processes.first_alone(lambda events=events: events.append("work"))
        assert events == wanted


def test_alone_nobody_is_waited_for(monkeypatch):
    monkeypatch.setattr(processes.multihost_utils, "sync_global_devices", None)
    made = []
    processes.first_alone(lambda: made.append(1))
    assert made == [1]


def test_one_process_of_a_host_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "gettempdir", lambda: str(tmp_path))
    with processes.one_at_a_time():
        (lock,) = tmp_path.glob("ratjax-*.lock")
        held = ["flock", "--nonblock", str(lock), "true"]
        assert subprocess.run(held).returncode == 1
    assert subprocess.run(held).returncode == 0


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (20, 8), dtype=np.int32)
    write_rows(tmp_path / "rows", tokens, np.ones((20, 8), bool))


def start(config, workdir, count, *more, last=()):
    """The command in `count` processes with eight devices among them; `last` is for one alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}"]
    joined = [f"--coordinator=localhost:{port}", f"--processes={count}"] if count > 1 else []
    return [
        subprocess.Popen(
            [
                *line,
                *joined,
                *([f"--process={index}"] if count > 1 else []),
                *more,
                *(last if index == count - 1 else ()),
            ],
            cwd=ROOT,
            env=environment(8 // count),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def finish(running):
    for process in running:
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 0, printed[-3000:]


def read_metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    names = ("step", "loss", "grad_norm", "targets")
    return np.asarray([[json.loads(line)[name] for name in names] for line in lines])


@pytest.mark.slow
def test_two_processes_are_as_one_and_a_signal_to_either_stops_both(
    data, experiment_file, tmp_path
):
    config = experiment_file(EDIT)
    finish(start(config, tmp_path / "one", 1))
    finish(start(config, tmp_path / "two", 2))
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 4
    # the same program: but sums over processes go another way than sums within one
    np.testing.assert_allclose(two, one, rtol=1e-6)
    ours, theirs = (to_parameters(load_model(tmp_path / name)) for name in ("two", "one"))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)

    endless = ("--config.train.steps=1000000", "--config.train.checkpoint_every=1000000")
    running = start(config, tmp_path / "stopped", 2, *endless)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    running[1].send_signal(signal.SIGTERM)
    finish(running)
    (last,) = steps(tmp_path / "stopped")
    assert read_metrics(tmp_path / "stopped")[-1][0] == last

    # and one process goes on from what two have left
    finish(start(config, tmp_path / "stopped", 1, f"--config.train.steps={last + 2}"))
    assert steps(tmp_path / "stopped")[-1] == last + 2
