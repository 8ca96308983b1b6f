import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ratjax.data.corpus import pool
from ratjax.errors import InputError

TESTS = pathlib.Path(__file__).parent.parent


def kill_itself(tell):
    os.kill(os.getpid(), signal.SIGKILL)


def the_same(number, tell):
    tell(1)
    return number


def blocked_signals(tell):
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line():
    calls = ((number, ()) for number in range(9))
    with pytest.raises(InputError, match="workers=1: one of them was killed, perhaps for want"):
        list(pool.work(kill_itself, calls, 1))


@pytest.mark.slow
def test_everything_is_called_and_told_once():
    told = []
    calls = ((number, (number,)) for number in range(50))
    assert sorted(pool.work(the_same, calls, 2, told.append)) == [(n, n) for n in range(50)]
    assert sum(told) == 50


@pytest.mark.slow
def test_workers_see_no_interrupts():
    """From their first instruction on: they inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    [(_, mask)] = pool.work(blocked_signals, [(0, ())], 1)
    assert signal.SIGINT in mask and signal.SIGTERM not in mask
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# The pool that this one follows hung after 1 to 146 interrupts (the median of six runs: 60).
INTERRUPTED = """
import contextlib, random, signal
from data.test_corpus_pool import the_same
from ratjax.data.corpus import pool

draw = random.Random(0)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
for _ in range(300):
    try:
        calls = ((number, (number,)) for number in range(10**6))
        with contextlib.closing(pool.work(the_same, calls, 2)) as made:
            for count, _ in enumerate(made):
                if count == 20:
                    signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 1e-2))
        raise SystemExit("no interrupt came")
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.slow
def test_interrupts_at_any_moment_end_it():
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    child = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (child.returncode, child.stderr) == (0, "")
