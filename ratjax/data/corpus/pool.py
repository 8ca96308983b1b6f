"""Processes that work on shards, and end with the process that started them, however it ends."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from ratjax.errors import InputError
from ratjax.interrupts import interrupts_held

TICK = 0.5  # seconds between two looks at the count of tokens

_tell: Callable[[int], None] | None = None  # in a worker: adds to the count that all share


class _Shared:
    """A count that several processes add to."""

    def __init__(self, context: Any):
        self._value = context.Value("q", 0)

    def add(self, count: int) -> None:
        with self._value.get_lock():
            self._value.value += count

    def read(self) -> int:
        """Without the lock, which a process that was killed may have taken with it."""
        return self._value.get_obj().value


def processors() -> int:
    """How many of them this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work(
    function: Callable[..., Any],
    calls: Iterable[tuple[int, tuple]],
    workers: int,
    tell: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[int, Any]]:
    """Calls a function once for each of `calls`, in processes of its own.

    Args:
      function: called as `function(*arguments, tell)`; must be importable.
      calls: numbers and arguments; taken as processes become free.
      workers: how many processes. 0: this one.
      tell: is told what the calls tell, here and now and then.

    Yields:
      Number and result of each call, as they come. Closing the generator ends the processes
      where they are.

    Raises:
      InputError: one that a call raised, or a process that was killed.
    """
    if not workers:
        for number, arguments in calls:
            yield number, function(*arguments, tell)
        return
    with contextlib.closing(_Workers(workers)) as pool:
        calls, running = iter(calls), {}
        while True:
            while len(running) <= workers and (call := next(calls, None)):
                number, arguments = call
                running[pool.submit(function, arguments)] = number
            if not running:
                return
            ended = pool.wait(running)
            tell(pool.told())
            for future, result in ended:
                yield running.pop(future), result


class _Workers:
    """Processes, and the count that they share.

    The executor is touched with interrupts held only: one that is raised amid it can leave a lock
    taken that the executor's own thread needs, and then nothing ends.
    """

    def __init__(self, workers: int):
        self._workers = workers
        context = multiprocessing.get_context("spawn")
        self._count, self._counted = _Shared(context), 0
        # The system closes the writing end with this process: every worker reads the end of file.
        self._watched, self._alive = context.Pipe(duplex=False)
        self._executor = concurrent.futures.ProcessPoolExecutor(
            workers, context, _begin, (self._watched, self._count)
        )

    def submit(self, function: Callable[..., Any], arguments: tuple) -> concurrent.futures.Future:
        with interrupts_held(), self._errors(), _plain_main(), _sigint_blocked():
            return self._executor.submit(_call, function, arguments)

    def wait(self, running: Iterable[concurrent.futures.Future]) -> list[tuple[Any, Any]]:
        """Those that ended, and their results; after `TICK`, perhaps none."""
        with interrupts_held(), self._errors():
            ended, _ = concurrent.futures.wait(running, TICK, concurrent.futures.FIRST_COMPLETED)
            return [(future, future.result()) for future in ended]

    def told(self) -> int:
        """What the calls told since this was last asked."""
        count = self._count.read()
        new, self._counted = count - self._counted, count
        return new

    def close(self) -> None:
        """Ends the processes where they are."""
        with interrupts_held():
            self._alive.close()
            self._executor.shutdown(cancel_futures=True)
            self._watched.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool:
            raise InputError(
                f"workers={self._workers}: one of them was killed, perhaps for want of memory; "
                "what is finished is kept: run the same command again, with fewer workers"
            ) from None


@contextlib.contextmanager
def _plain_main() -> Iterator[None]:
    """Processes started meanwhile do not import the command's module: it costs seconds, and JAX."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, which goes to all: the first one decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(watched: Connection, shared: _Shared) -> None:
    global _tell
    _tell = shared.add
    # As many processes as there are processors: not threads of the tokenizer's besides.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()


def _end_with_parent(watched: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


def _call(function: Callable[..., Any], arguments: tuple) -> Any:
    return function(*arguments, _tell)
