import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ratjax.config.train import TrainConfig
from ratjax.train.stopping import Stop, stop_signal
from ratjax.train.watch import HINTS, STATUS, Watch


def test_seconds_add_up_by_phase(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(0.0, 0.0)
    for phase, seconds in (("data", 2.0), ("step", 3.0), ("data", 4.0), ("step", 5.0)):
        watch.enter(phase, step=1)
        now[0] += seconds
    watch.enter("over")
    assert {**watch.seconds} == {"start": 0.0, "data": 6.0, "step": 8.0}


@pytest.mark.parametrize("phase", HINTS)
def test_a_stalled_phase_is_named_once(phase, capfd):
    with Watch(0.04, 0.0) as watch:
        watch.enter(phase, step=12)
        time.sleep(0.15)
        watch.enter("step", step=13)  # and what moves is not
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: no progress for")
    assert f"in phase '{phase}', at step 12: {HINTS[phase]}" in said[0]


def test_it_ends_the_process_with_a_status_of_its_own_after_the_second_limit(capfd):
    left = threading.Event()
    statuses = []

    def leave(status):
        statuses.append(status)
        left.set()

    with Watch(0.05, 0.2, leave) as watch:
        watch.enter("save", step=7)
        assert left.wait(10)
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("warning: no progress")
    assert any("Thread" in line for line in said[1:-1])  # every thread's stack
    assert said[-1].startswith("error: no progress for") and "phase 'save', at step 7" in said[-1]
    assert statuses == [STATUS]


@pytest.mark.slow
def test_a_process_that_hangs_really_ends():
    program = (
        "import time; from ratjax.train.watch import Watch\n"
        "with Watch(0, 0.2) as watch:\n"
        "    watch.enter('data', 3)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, env=environment
    )
    assert done.returncode == STATUS
    assert done.stderr.splitlines()[-1].endswith("ended by the watchdog")


def test_without_limits_there_is_no_thread():
    before = threading.active_count()
    with Watch(0.0, 0.0):
        assert threading.active_count() == before


def test_the_grace_period_begins_with_the_signal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("ratjax.train.stopping.time.monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal(grace=30.0) as stop:
        assert not stop.wanted(1) and stop.leaves(1e9)
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 20
        os.kill(os.getpid(), signal.SIGTERM)  # a second one gives no more time
        assert stop.wanted(2)
        assert stop.leaves(10.0) and not stop.leaves(10.1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with stop_signal(grace=1.0) as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.wanted(1)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_defaults_warn_but_do_not_end():
    assert TrainConfig().watchdog > 0 and TrainConfig().watchdog_exit == 0
    assert Stop(5.0).deadline is None
