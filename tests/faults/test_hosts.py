"""One of two machines dies: nothing is lost, and another number of them goes on."""

import signal
import time

import numpy as np
import pytest

from launch import processes
from ratjax.model.checkpoint import load_model, steps
from ratjax.model.parameters import to_parameters
from tests.launch.conftest import experiment_file
from tests.launch.test_processes import EDIT, data, finish, read_metrics, start

__all__ = ["data", "experiment_file"]  # fixtures

TOTAL = 16
LENGTH = f"--config.train.steps={TOTAL}"


@pytest.mark.slow
def test_one_process_goes_on_after_one_of_two_was_killed(data, experiment_file, tmp_path):
    config = experiment_file(EDIT)
    running = start(config, tmp_path / "run", 2, LENGTH, "--heartbeat_seconds=20")
    while len(steps(tmp_path / "run")) < 2:
        assert all(process.poll() is None for process in running), running[0].stdout.read()
        time.sleep(0.05)
    running[1].send_signal(signal.SIGKILL)
    said, _ = running[0].communicate(timeout=300)
    running[1].communicate()
    # Its exchange with the dead one fails, or hangs until JAX's heartbeats time out and JAX aborts.
    assert running[0].returncode in (processes.LOST, -signal.SIGABRT), said
    if running[0].returncode == processes.LOST:
        line = said.splitlines()[-1]
        assert line.startswith("error: process 0 of 2: another process has ended"), said
    assert steps(tmp_path / "run")[-1] < TOTAL

    finish(start(config, tmp_path / "run", 1, LENGTH))
    finish(start(config, tmp_path / "one", 1, LENGTH))
    moved, one = (read_metrics(tmp_path / name) for name in ("run", "one"))
    # The same rows in the same order; sums over processes go another way than sums within one.
    assert moved[:, 3].tolist() == one[:, 3].tolist()
    np.testing.assert_allclose(moved, one, rtol=1e-6)
    ours, theirs = (to_parameters(load_model(tmp_path / name)) for name in ("run", "one"))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_bad_input_in_one_process_ends_it_at_once(data, experiment_file, tmp_path):
    """With its own status: it does not wait for the other, which waits for it."""
    config = experiment_file(EDIT)
    running = start(config, tmp_path / "run", 2, last=("--config.train.learning_rate=-1",))
    try:
        said, _ = running[1].communicate(timeout=90)  # JAX gives up after 100 s
        assert running[1].returncode == 2 and "train.learning_rate=-1" in said, said
    finally:
        for process in running:
            process.kill()
            process.communicate()
