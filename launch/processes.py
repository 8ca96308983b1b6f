"""Several processes as one machine: what joins them before JAX looks for devices."""

import contextlib
import fcntl
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils

from launch import command
from ratjax.errors import InputError

# Status of a process that has lost another: not its fault, and the same command goes on.
LOST = 4


def define() -> None:
    """Defines the flags by which a process finds the others."""
    if "coordinator" not in command.FLAGS:
        flags.DEFINE_string(
            "coordinator",
            "",
            "Runs on the devices of several processes, each started with this same command. "
            "'auto': TPU pods, Slurm and Kubernetes tell JAX of the others; else the first "
            "process's host:port, with --processes and --process. Empty: this process alone.",
            command.FLAGS,
        )
        flags.DEFINE_integer(
            "processes", None, "How many processes there are.", 1, flag_values=command.FLAGS
        )
        flags.DEFINE_integer(
            "process", None, "Which of them this one is, from 0.", 0, flag_values=command.FLAGS
        )
        flags.DEFINE_integer(
            "heartbeat_seconds",
            100,
            "How long a process may be silent before the others take it for dead and end.",
            1,
            flag_values=command.FLAGS,
        )


def join() -> None:
    """Joins the other processes, where the flags name any. Before any use of a device.

    Raises:
      InputError: flags that do not go together.
    """
    _make_room_for_emulated_devices()
    address, count, index = (
        command.FLAGS[name].value for name in ("coordinator", "processes", "process")
    )
    heartbeat = {"heartbeat_timeout_seconds": command.FLAGS["heartbeat_seconds"].value}
    if address in ("", "auto"):
        for name, value in (("processes", count), ("process", index)):
            if value is not None:
                raise InputError(f"--{name}={value}: needs --coordinator=<host:port>")
        if address == "auto":
            jax.distributed.initialize(**heartbeat)
        return
    if count is None or index is None:
        raise InputError(f"--coordinator={address}: needs --processes and --process")
    if index >= count:
        raise InputError(f"--process={index}: must be below --processes={count}")
    jax.distributed.initialize(address, count, index, **heartbeat)


def first_alone(work: Callable[[], Any]) -> None:
    """Makes the files that are missing: in the first process, then in the others.

    Where all see the same disks, the others find everything there. Where each host has its own, as
    on pods, each makes the same files: one process of a host at a time, all hosts at once.

    Args:
      work: makes what is missing, and always the same.
    """
    if jax.process_count() == 1:
        work()
        return
    if jax.process_index() == 0:
        work()
    multihost_utils.sync_global_devices("first_alone")
    if jax.process_index() != 0:
        with one_at_a_time():
            work()
    multihost_utils.sync_global_devices("others")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """A block that no two processes of this user on this host are in at once."""
    path = pathlib.Path(tempfile.gettempdir()) / f"ratjax-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed
        yield


def _make_room_for_emulated_devices() -> None:
    """Gives XLA threads enough for a CPU that is told to be several devices.

    Each device's part of a collective holds a thread until the others' parts arrive, and a
    program's independent collectives may start in another order on each device. With a thread a
    core (XLA's default, or a thread a device if that is more) all can hold one and wait for
    parts that find none, which XLA ends after 40 seconds by aborting. `NPROC` is where XLA reads
    the number from (`DefaultThreadPoolSize`, xla/pjrt/utils.cc).
    """
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    count = int(flag[1]) if flag else jax.config.jax_num_cpu_devices
    if count > 1:
        os.environ.setdefault("NPROC", str(8 * count))
