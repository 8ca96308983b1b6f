"""The flags of `launch.pods`, and the pod, program and limits that they describe."""

import re
import sys

from absl import flags

from launch import command
from launch.pods.babysit import Limits
from launch.pods.pod import Place, Pod, flag_of, rented
from launch.pods.session import Job
from ratjax.errors import InputError


def define() -> None:
    """Defines the flags."""
    own = command.FLAGS
    command.define_dry_run()
    where, text, number = "Which pod: ", flags.DEFINE_string, flags.DEFINE_integer
    text("pod", None, f"{where}its name, of your choice.", own)
    text("topology", None, f"{where}each slice: v5p:4x4x4, v5litepod-64, v6e-256, ...", own)
    number("slices", 1, f"{where}how many slices of that shape.", 1, flag_values=own)
    text("zone", None, f"{where}Google Cloud's zone, such as us-east5-a.", own)
    text("project", None, f"{where}Google Cloud's project.", own)
    flags.DEFINE_bool("spot", False, "create: cheaper; can be taken away at any moment.", own)
    flags.DEFINE_bool("reserved", False, "create: from the project's reservation.", own)
    text("network", "", "create: other than default.", own)
    text("service_account", "", "create: other than Compute Engine's default.", own)
    flags.DEFINE_bool("tunnel", False, "No public addresses: reach hosts through IAP.", own)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    text("python", here, "setup: release of Python on the hosts.", own)
    text("image", "", "setup, run: a container image instead of this checkout's code.", own)
    fetched = "setup: gs://bucket/folder=data/folder (or models/...): every host copies it."
    flags.DEFINE_multi_string("fetch", [], fetched, own)
    logs = "run: a gs:// folder for copies of the hosts' logs; else <workdir>/logs."
    text("logs", "", logs, own)
    number("grace", 300, "stop: seconds to save and end.", 1, flag_values=own)
    flags.DEFINE_bool("babysit", False, "run: create, set up, start again as needed.", own)
    ended = "run --babysit: give the pod back when the program has ended or is given up."
    flags.DEFINE_bool("delete_at_end", True, ended, own)
    limits = Limits()
    number("max_restarts", limits.restarts, "Restarts in all.", 0, flag_values=own)
    seconds, hours = limits.poll_seconds, limits.wait_hours
    flags.DEFINE_float("poll_seconds", seconds, "Between two questions.", 1, flag_values=own)
    flags.DEFINE_float("wait_hours", hours, "At most in the queue.", 0, flag_values=own)
    text("cluster", "", "xpk: the cluster.", own)


def need(*names: str) -> list:
    """The values of flags that this verb cannot do without."""
    for name in names:
        if not command.FLAGS[name].value:
            raise InputError(f"--{name} is required")
    return [command.FLAGS[name].value for name in names]


def place() -> Place:
    """The pod, where its shape does not matter."""
    name, zone, project = need("pod", "zone", "project")
    return Place(name=name, zone=zone, project=project, tunnel=command.FLAGS.tunnel)


def pod() -> Pod:
    """The pod that the flags describe."""
    name, topology, zone, project = need("pod", "topology", "zone", "project")
    given = command.FLAGS
    return Pod(
        name=name,
        zone=zone,
        project=project,
        tunnel=given.tunnel,
        topology=rented(topology),
        slices=given.slices,
        spot=given.spot,
        reserved=given.reserved,
        network=given.network,
        service_account=given.service_account,
    )


def job(program: tuple[str, ...]) -> Job:
    """What is to run, and what it needs."""
    given, fetch = command.FLAGS, []
    for item in given.fetch:
        match = re.fullmatch(r"(gs://[^=]+)=((?:data|models)/[\w./-]+)", item)
        if not match or ".." in match[2]:
            raise InputError(
                f"--fetch={item}: must read gs://bucket/folder=data/folder or =models/folder"
            )
        fetch.append((match[1], match[2]))
    logs = given.logs
    if logs and not logs.startswith("gs://"):
        raise InputError(f"--logs={logs}: must begin with gs://")
    workdir = flag_of(program, "workdir") or ""
    if not logs and workdir.startswith("gs://"):
        logs = f"{workdir.rstrip('/')}/logs"
    if not re.fullmatch(r"3\.\d+", given.python):
        raise InputError(f"--python={given.python}: must be a release such as 3.12")
    return Job(
        program=program,
        image=given.image,
        python=given.python,
        fetch=tuple(fetch),
        logs=logs,
        grace=given.grace,
        revision=command.revision() or "",
    )


def limits() -> Limits:
    given = command.FLAGS
    return Limits(
        restarts=given.max_restarts,
        wait_hours=given.wait_hours,
        poll_seconds=given.poll_seconds,
    )
