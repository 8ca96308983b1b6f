"""What a storage error says, in words that a user can act on."""

import contextlib
import errno
import logging
from collections.abc import Iterator

from ratjax.files import Folder
from ratjax.train.stopping import TrainingStopped
from ratjax.train.watch import Watch

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES}
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
# TensorStore's and gcsfs's ways of saying that Google Cloud Storage does not answer, or refuses.
_BUCKET_WORDS = (
    "Couldn't connect",
    "Could not connect",
    "Couldn't resolve host",
    "Could not resolve host",
    "Connection refused",
    "Cannot connect to host",
    "Network is unreachable",
    "Timeout was reached",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "NOT_FOUND: Bucket",
    "HttpError",
    "Forbidden: ",
    "The specified bucket does not exist",
    "Could not automatically determine credentials",
)
_MOST = 160  # characters of the original message


@contextlib.contextmanager
def storage_errors(workdir: Folder, watch: Watch) -> Iterator[None]:
    """Turns a storage error into `TrainingStopped`, whichever way it comes to light.

    Orbax deletes no checkpoint before the next one is whole, so the last good one is still there.
    """
    logger = logging.getLogger("absl")
    logger.addFilter(_not_orbax)
    try:
        yield
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            logger.removeFilter(_not_orbax)
            raise
        # The filter stays: Orbax's other threads fail after the first.
        raise TrainingStopped(
            f"at step {watch.step}: {problem}; the last good checkpoint in {workdir} is kept, and "
            "the same command resumes from it"
        ) from error
    else:
        logger.removeFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    """Leaves out Orbax's errors, which it logs with a traceback a thread, and then raises."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def storage_problem(error: BaseException) -> str | None:
    """What is wrong with the storage, in one line; None where the error is another one.

    Args:
      error: as it was raised; what it was raised from is looked at too.
    """
    for link in _chain(error):
        said = " ".join(str(link).split())
        if getattr(link, "errno", None) in _FULL or any(w in said for w in _FULL_WORDS):
            return f"the disk is full ({_short(said)}); free some space, or lower train.keep"
        # Errors of XLA are about devices, whatever they say.
        if type(link).__name__ != "JaxRuntimeError" and any(w in said for w in _BUCKET_WORDS):
            return f"the bucket does not answer, or refuses ({_short(said)})"
        if getattr(link, "errno", None) in _REFUSED:
            return f"the storage refuses ({_short(said)})"
    return None


def _chain(error: BaseException | None):
    seen = set()
    todo = [error]
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]


def _short(said: str) -> str:
    # What was done comes first, and why it failed comes last.
    return said if len(said) <= _MOST else f"{said[: _MOST // 2]}...{said[-_MOST // 2 :]}"
