"""Where a run's time goes, and a thread that speaks up when it stops going anywhere."""

import faulthandler
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable

STATUS = 3  # of a process that the watchdog ends

HINTS = {
    "start": "the data folders or train.init_from answer slowly",
    "restore": "the folder of the checkpoints answers slowly",
    "data": "the data folders answer slowly; see data_share in metrics.jsonl",
    "compile": "XLA is compiling; launch.compile_ahead does it beforehand",
    "step": "a device, or a process that this one waits for, does not answer",
    "held-out": "the folders of train.held_out answer slowly, or a device does not answer",
    "save": "the folder of the checkpoints answers slowly",
}


class Watch:
    """Adds up the seconds of each phase of a run, and names the one in which nothing moves.

    Used as a context: while it lasts, a thread looks at how long the phase has taken.

    Args:
      warn: seconds in one phase after which one line on stderr names it. 0: never.
      end: seconds in one phase after which the process ends, with every thread's stack, a line
        and status 3. 0: never.
      leave: what ends the process. A hanging thread would outlive `sys.exit`.

    Attributes:
      seconds: spent in each phase so far, the current one not counted.
    """

    def __init__(self, warn: float, end: float, leave: Callable[[int], None] = os._exit):
        self.warn, self.end, self.leave = warn, end, leave
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.phase, self.step, self.began = "start", 0, time.monotonic()
        self._warned = False
        self._done = threading.Event()
        limits = [limit for limit in (warn, end) if limit > 0]
        self._pause = min(5.0, min(limits, default=0) / 8)
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Begins a phase, which ends the one before."""
        now = time.monotonic()
        self.seconds[self.phase] += now - self.began
        self.began, self.phase, self._warned = now, phase, False
        self.step = self.step if step is None else step

    def __enter__(self) -> "Watch":
        if self._pause:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.enter("over")
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(self._pause):
            phase, spent = self.phase, time.monotonic() - self.began
            hint = HINTS.get(phase, "")
            where = f"in phase '{phase}', at step {self.step}: {hint}"
            if 0 < self.end < spent:
                faulthandler.dump_traceback(all_threads=True)
                self._say(f"error: no progress for {spent:.0f} s {where}; ended by the watchdog")
                self.leave(STATUS)
                return
            if 0 < self.warn < spent and not self._warned:
                self._warned = True
                self._say(f"warning: no progress for {spent:.0f} s {where}")

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
