"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from io import TextIOBase

from tqdm import tqdm

# Seconds before the first plain line, and between two of them.
FIRST, EVERY = 10.0, 30.0


class Progress:
    """Counts answers against their total, and says when all will be there.

    Args:
      label: what is evaluated.
      total: answers in all.
      done: those that an earlier run left.
      stream: where it is shown.
      clock: seconds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        stream: TextIOBase | None = None,
        clock: Callable[[], int | float] = time.monotonic,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._label, self._total, self._done, self._start = label, total, done, done
        self._clock, self._began = clock, clock()
        self._next = self._began + FIRST
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=label, unit="answer", file=self._stream
            )

    def add(self, count: int, what: str) -> None:
        """Counts `count` answers more; `what` names those being worked on."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(what, refresh=False)
            self._bar.update(count)
        elif self._clock() >= self._next and self._done < self._total:
            self._next = self._clock() + EVERY
            rate = (self._done - self._start) / (self._clock() - self._began)
            left = duration((self._total - self._done) / rate)
            print(
                f"{self._label}: {self._done}/{self._total} answers "
                f"({100 * self._done // self._total} %), {rate:.3g} a second, {left} left; {what}",
                file=self._stream,
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: int | float) -> str:
    """Seconds as "42 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
