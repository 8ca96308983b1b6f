import errno
import os

import jax
import pytest

from ratjax.train.failures import storage_errors, storage_problem
from ratjax.train.stopping import TrainingStopped
from ratjax.train.watch import Watch

# As TensorStore, gcsfs and the operating system put it.
FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ValueError("RESOURCE_EXHAUSTED: Failed to write file: [OS error 28: No space left on device]"),
]
UNREACHABLE = [
    ConnectionError("Cannot connect to host storage.googleapis.com:443"),
    ValueError("UNAVAILABLE: CURL error[7] Couldn't connect to server: Connection refused"),
    RuntimeError("PERMISSION_DENIED: storage.objects.create access denied"),
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk(error):
    assert storage_problem(error).startswith("the disk is full (")


@pytest.mark.parametrize("error", UNREACHABLE)
def test_a_bucket_that_does_not_answer(error):
    assert storage_problem(error).startswith("the bucket does not answer, or refuses (")


def test_a_disk_that_fails():
    assert storage_problem(OSError(errno.EIO, "Input/output error")).startswith("the storage")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("axis 3 is out of range"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        # XLA's own, about devices that do not answer
        jax.errors.JaxRuntimeError("UNAVAILABLE: connection to the coordinator was lost"),
    ],
)
def test_defects_keep_their_tracebacks(error):
    assert storage_problem(error) is None


def test_what_an_error_was_raised_from_counts():
    try:
        try:
            raise FULL[0]
        except OSError as cause:
            raise RuntimeError("saving failed") from cause
    except RuntimeError as error:
        found = storage_problem(error)
    assert "disk is full" in found
    assert "disk is full" in storage_problem(ExceptionGroup("several", [ValueError("x"), FULL[0]]))


def test_the_line_names_the_step_and_the_folder(tmp_path):
    watch = Watch(0.0, 0.0)
    watch.enter("save", 40)
    with pytest.raises(TrainingStopped) as stopped, storage_errors(tmp_path, watch):
        raise FULL[2]
    said = str(stopped.value)
    assert said.startswith("at step 40: the disk is full (RESOURCE_EXHAUSTED")
    assert f"the last good checkpoint in {tmp_path} is kept" in said and "\n" not in said
    with pytest.raises(ValueError, match="axis"), storage_errors(tmp_path, watch):
        raise ValueError("axis 3")
