"""Work that an interrupt must not split."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Lets SIGINT and SIGTERM act when the block ends.

    Their handlers run in the main thread between any two of its instructions, and one that raises
    leaves what was begun there half done: a lock that a `with` had taken but not yet guarded stays
    taken, and the threads of an executor or of a checkpoint, which no signal stops, wait for it
    or go on. A signal that Python has no handler for is left as it is: it raises nothing, and JAX's
    own handler of SIGTERM, of which Python knows nothing, could not be put back.
    """
    if threading.current_thread() is not threading.main_thread():  # signals do not come here
        yield
        return
    came: list[int] = []
    try:
        with _recorded(signal.SIGINT, came), _recorded(signal.SIGTERM, came):
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)


@contextlib.contextmanager
def _recorded(number: signal.Signals, came: list[int]) -> Iterator[None]:
    """One signal's handler replaced; one context each, as the other's may raise while it ends."""
    before = signal.getsignal(number)
    if not callable(before):
        yield
        return
    signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(number, before)
