"""How far a tokenization is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from io import TextIOBase

from tqdm import tqdm

EVERY = 30.0  # seconds between two plain lines


class Progress:
    """Counts tokens, and bytes of input in finished shards, and says when all will be there.

    Args:
      stream: where it is shown; None: stderr.
      clock: seconds.
    """

    def __init__(
        self, stream: TextIOBase | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._total = self._before = self._bytes = self._tokens = 0
        self._bar = None

    def begin(self, total: int, done: int) -> None:
        """Starts the clock; `done` of the `total` bytes were read by earlier runs."""
        self._total, self._before, self._bytes = total, done, done
        self._began = self._shown = self._clock()
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, unit="B", unit_scale=True, file=self._stream
            )

    def shard(self, size: int) -> None:
        """A shard of so many bytes of input is finished."""
        self._bytes += size
        if self._bar is not None:
            self._bar.update(size)

    def tokens(self, count: int) -> None:
        """So many tokens more were made."""
        self._tokens += count
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate())
        elif self._clock() - self._shown >= EVERY:
            self._shown = self._clock()
            print(
                f"{self._fraction()}, {self._rate()}{self._left()}", file=self._stream, flush=True
            )

    def close(self) -> None:
        """Ends the bar's line, or says what was reached."""
        if self._bar is not None:
            self._bar.close()
        elif self._tokens:
            print(f"{self._fraction()}, {self._rate()}", file=self._stream, flush=True)

    def _fraction(self) -> str:
        size = tqdm.format_sizeof
        return f"read {size(self._bytes, 'B', 1000)} of {size(self._total, 'B', 1000)}"

    def _rate(self) -> str:
        seconds = max(self._clock() - self._began, 1e-3)
        size = tqdm.format_sizeof
        return f"{size(self._tokens)} tokens, {size(self._tokens / seconds)} tokens/s"

    def _left(self) -> str:
        read = self._bytes - self._before
        if not read:
            return ""
        seconds = (self._clock() - self._began) * (self._total - self._bytes) / read
        return f", {tqdm.format_interval(seconds)} left"
