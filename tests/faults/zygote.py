"""Starts training commands by forking, so that each of many needs no imports of its own.

Reads one JSON list of arguments a line; forks a child that runs `launch.train` with them, prints
the child's process id, and, once it is over, its status (negative: the signal that ended it).
What the child prints goes to the file that the first argument names.
"""

import json
import os
import signal
import sys
import threading


def serve() -> None:
    from launch import train  # defines the flags, which each child then reads for itself

    assert threading.active_count() == 1, "a fork would lose the other threads"
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            run(train, output, arguments)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(train, output: str, arguments: list[str]) -> None:
    """The command, in the place of this process."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever these tests run under
    sys.argv = ["launch.train", *arguments]
    status = 1
    try:
        train.command.run(train.main)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
