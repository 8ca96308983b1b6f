"""Runs commands, or prints what would be run."""

import shlex
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from ratjax.errors import InputError

REMEDIES = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then "
    "`gcloud auth login`",
    "git": "install git; the code that is sent is what it has committed",
}


class CommandFailed(Exception):
    """A command ended badly. The message is one line."""

    def __init__(self, argv: Sequence[str], code: int, said: str):
        self.code, self.said = code, said
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
        # gcloud begins its errors with the name of the command; what follows is the reason.
        reason = next((line for line in said.splitlines() if line.startswith("ERROR:")), last)
        super().__init__(f"{shlex.join(argv[:5])} ... ended with {code}: {reason}")


class Done(NamedTuple):
    """What a command that may fail has said."""

    code: int
    out: str
    err: str


class Executor:
    """Runs commands.

    Attributes:
      dry: whether commands are only printed.
      count: commands so far.
    """

    def __init__(self, dry: bool = False):
        self.dry, self.count = dry, 0

    def say(self, text: str) -> None:
        """Prints what is going on; in a dry run, as a comment."""
        print(f"# {text}" if self.dry else text, flush=True)

    def run(self, argv: Sequence[str], *, fails: bool = False, shown: bool = False) -> Done:
        """Runs a command and waits for it.

        Args:
          argv: the command and its arguments; no shell reads them.
          fails: whether it may end badly.
          shown: lets it write to this terminal, and returns none of what it writes there.

        Raises:
          InputError: the program is not installed.
          CommandFailed: it ended badly, and may not.
        """
        self.count += 1
        if self.dry:
            print(shlex.join(argv), flush=True)
            return Done(0, "", "")
        kept = None if shown else subprocess.PIPE
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=kept, stderr=kept, text=True
            )
        except FileNotFoundError:
            remedy = REMEDIES.get(argv[0], "install it")
            raise InputError(f"{argv[0]}: not found; {remedy}") from None
        result = Done(done.returncode, done.stdout or "", done.stderr or "")
        if result.code and not fails:
            raise CommandFailed(argv, result.code, result.err or result.out)
        return result
