"""How far an evaluation is: lines with an estimate, or a bar on a terminal."""

import io

import pytest

from ratjax.needle.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_now_and_then():
    now, stream = [0.0], io.StringIO()
    progress = Progress("memory", 1000, 100, stream, lambda: now[0])
    for second in range(1, 61):
        now[0] = second
        progress.add(10, "quest 1/4")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "memory: 200/1000 answers (20 %), 10 a second, 80 s left; quest 1/4",
        "memory: 500/1000 answers (50 %), 10 a second, 50 s left; quest 1/4",
    ]


def test_a_quick_evaluation_says_nothing():
    stream = io.StringIO()
    progress = Progress("memory", 4, stream=stream)
    progress.add(4, "dense")
    progress.close()
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal():
    stream = Terminal()
    progress = Progress("memory", 10, 5, stream)
    progress.add(5, "dense")
    progress.close()
    shown = stream.getvalue().split("\r")[-1]
    assert "memory: 100%" in shown and "10/10" in shown and "dense" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (100, "2 min"), (3600, "60 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
