"""Runs that are killed outright, at any moment, give the losses of one that is left alone."""

import functools
import random
import signal
import time

import pytest

from ratjax.model.checkpoint import steps
from tests.faults.conftest import EVERY, TOTAL, assert_same


def kill(run, moment, rng):
    """Starts the command and kills it, in a save or at a random moment; whether it was in time."""
    run.start()
    begun = run.lines()
    if moment == "save":
        hit = run.until(run.saving)
    else:
        # Before the first step as well: while it starts, restores and compiles.
        ahead = rng.choice([0, 0, 1, 2, 5])
        hit = run.until(lambda: ahead == 0 or run.lines() >= begun + ahead)
        time.sleep(rng.uniform(0, 1.5 if ahead == 0 else 0.05))
    run.signal(signal.SIGKILL)
    caught = run.saving()
    return hit and run.finish() == -signal.SIGKILL, caught


def survive(run, moments, seed=0):
    """Kills it at each of the moments; how many kills hit, and how many of them a save."""
    rng = random.Random(seed)
    hits = [kill(run, moment, rng) for moment in moments]
    return sum(hit for hit, _ in hits), sum(hit and caught for hit, caught in hits)


def test_killed_in_a_save_and_elsewhere(victim, undisturbed):
    run = victim("short")
    hits, caught = survive(run, ["save", "any"])
    assert hits == 2 and caught >= 1
    run.start()
    assert run.finish() == 0, run.said()
    assert_same(run, undisturbed)
    names = [path.name for path in (run.workdir / "checkpoints").iterdir()]
    assert all(map(str.isdecimal, names))  # what the killed save left has been removed


@pytest.mark.slow
def test_stopped_by_sigterm(victim, undisturbed):
    run = victim("stopped")
    run.start()
    assert run.until(lambda: run.lines() > 4)
    noticed = time.monotonic()
    run.signal(signal.SIGTERM)
    assert run.finish() == 0
    assert time.monotonic() - noticed < 30  # train.grace_seconds
    assert "stopped by a signal; the same command resumes it" in run.said()
    (*_, last) = steps(run.workdir)
    assert run.losses()[-1]["step"] == last < TOTAL  # saved where it stopped
    run.start()
    assert run.finish() == 0, run.said()
    assert f"resuming from step {last} of {TOTAL}" in run.said()
    assert_same(run, undisturbed)


def is_at(run, said, lines):
    """Whether the command that was started last speaks, and has made its metrics so long."""
    return len(run.said()) > said and run.lines() >= lines


@pytest.mark.slow
def test_an_interrupt_ends_it_at_once_and_in_one_line(victim, undisturbed):
    run = victim("interrupted")
    for ahead in (0, 1, 5):
        run.start()
        said, lines = len(run.said()), run.lines() + ahead
        assert run.until(functools.partial(is_at, run, said, lines))
        run.signal(signal.SIGINT)
        assert run.finish() == 130
        # A line of stdout may be without its end.
        assert run.said().endswith("error: interrupted\n") and "Traceback" not in run.said()
    run.start()
    assert run.finish() == 0, run.said()
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_soak(victim, undisturbed):
    """At least twenty kills, some of them in a save, in as many runs as that takes."""
    killed = saves = number = 0
    while killed < 20:
        number += 1
        run = victim(f"soak-{number}")
        hits, caught = survive(run, ["any", "save", "any", "any", "save"], seed=number)
        killed, saves = killed + hits, saves + caught
        run.start()
        assert run.finish() == 0, run.said()
        assert_same(run, undisturbed)
        assert all(step % EVERY == 0 or step == TOTAL for step in steps(run.workdir))
        assert number < 12, (killed, saves)
    assert saves >= 5
