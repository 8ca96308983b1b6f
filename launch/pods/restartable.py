"""Runs a program where exit status 0 means that it need not be started again.

  python -m launch.pods.restartable python -m launch.train --config=... --workdir=gs://...

`launch.train` ends with 0 when it was stopped by a signal and has saved: right where it is stopped
by hand, wrong under a scheduler that takes 0 for the end. Here that becomes 75 (EX_TEMPFAIL of
sysexits.h). Signals are passed on, output as well.
"""

import collections
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

STOPPED = "stopped by a signal"  # what launch.train prints when it was
TRY_AGAIN = os.EX_TEMPFAIL
_LAST = 20  # lines of output among which it is looked for


def run(program: Sequence[str]) -> int:
    """Runs a program to its end.

    Returns:
      Its status; `TRY_AGAIN` where it was 0 after a signal; 128 + n where signal n ended it.
    """
    child = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, errors="replace")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda given, _: child.send_signal(given))
    last = collections.deque(maxlen=_LAST)
    for line in child.stdout:
        print(line, end="", flush=True)
        last.append(line)
    code = child.wait()
    if code < 0:
        return 128 - code
    return TRY_AGAIN if code == 0 and any(STOPPED in line for line in last) else code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
