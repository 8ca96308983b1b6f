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


def work(
    function: Callable[..., Any],
    calls: Iterable[tuple[int, tuple]],
    workers: int,
    tell: Callable[[int], None],
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
    context = multiprocessing.get_context("spawn")
    shared, counted = _Shared(context), 0
    # The system closes the writing end with this process: every worker reads the end of file.
    watched, alive = context.Pipe(duplex=False)
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (watched, shared))
    calls, running = iter(calls), {}
    try:
        while True:
            while len(running) <= workers and (call := next(calls, None)):
                number, arguments = call
                with _plain_main():
                    running[executor.submit(_call, function, arguments)] = number
            if not running:
                return
            done, _ = concurrent.futures.wait(running, TICK, concurrent.futures.FIRST_COMPLETED)
            told = shared.read()
            tell(told - counted)
            counted = told
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise InputError(
            f"workers={workers}: one of them was killed, perhaps for want of memory; what is "
            "finished is kept: run the same command again, with fewer workers"
        ) from None
    finally:
        alive.close()
        executor.shutdown(cancel_futures=True)
        watched.close()


@contextlib.contextmanager
def _plain_main() -> Iterator[None]:
    """Processes started meanwhile do not import the command's module: it costs seconds, and JAX."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(watched: Connection, shared: _Shared) -> None:
    global _tell
    _tell = shared.add
    # As many processes as there are processors: not threads of the tokenizer's besides.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()


def _end_with_parent(watched: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


def _call(function: Callable[..., Any], arguments: tuple) -> Any:
    return function(*arguments, _tell)
