"""The commands of Google's command line, as lists of arguments. Nothing is run here.

Checked against the tables of Google Cloud SDK 528.0.0 (2025-06), by a test where it is installed.
"""

import pathlib
import shlex
from collections.abc import Sequence

from launch.pods.machines import machine_of
from launch.pods.pod import Place, Pod

Argv = tuple[str, ...]

_QUEUE = ("gcloud", "compute", "tpus", "queued-resources")
EVERY_HOST = ("--worker=all", "--node=all")
# The folder in the home directory of every host that holds all that this package puts there.
FOLDER = "ratjax"


def _where(pod: Place) -> Argv:
    return (f"--zone={pod.zone}", f"--project={pod.project}")


def create(pod: Pod) -> Argv:
    """Queues a request; it is granted at some later time."""
    nodes = (
        (f"--node-id={pod.name}",)
        if pod.slices == 1
        else (f"--node-count={pod.slices}", f"--node-prefix={pod.name}")
    )
    return (
        *_QUEUE,
        "create",
        pod.name,
        *_where(pod),
        f"--accelerator-type={pod.topology.accelerator_type}",
        f"--runtime-version={machine_of(pod.topology).runtime}",
        *nodes,
        *(("--spot",) if pod.spot else ()),
        *(("--reserved",) if pod.reserved else ()),
        *((f"--network={pod.network}",) if pod.network else ()),
        *((f"--service-account={pod.service_account}",) if pod.service_account else ()),
        *(("--internal-ips",) if pod.tunnel else ()),
        "--async",
    )


def describe(pod: Place) -> Argv:
    """Prints the request as JSON: its state, and its nodes."""
    return (*_QUEUE, "describe", pod.name, *_where(pod), "--format=json")


def describe_node(pod: Place, node: str) -> Argv:
    """Prints the state of one slice."""
    tool = ("gcloud", "compute", "tpus", "tpu-vm", "describe", node)
    return (*tool, *_where(pod), "--format=value(state)")


def delete(pod: Place) -> Argv:
    """Gives the nodes back, then forgets the request; returns when both are gone."""
    return (*_QUEUE, "delete", pod.name, *_where(pod), "--force", "--quiet")


def list_all(zone: str, project: str) -> Argv:
    """Prints every request of a project in a zone."""
    return (*_QUEUE, "list", f"--zone={zone}", f"--project={project}")


def copy(pod: Place, folder: pathlib.Path) -> Argv:
    """Copies a folder into the home directory of every host."""
    source = (str(folder), f"{pod.name}:")
    return (*_QUEUE, "scp", "--recurse", *source, *EVERY_HOST, *_where(pod), *_reach(pod))


def on_hosts(
    pod: Place, words: Sequence[str], where: Sequence[str] = EVERY_HOST, more: Sequence[str] = ()
) -> Argv:
    """Runs one command on the hosts.

    Args:
      pod: whose hosts.
      words: the command, a word an item. What is special to a shell is quoted.
      where: which hosts.
      more: further flags of `ssh`.
    """
    command = f"--command={shlex.join(words)}"
    return (*_QUEUE, "ssh", pod.name, *where, *_where(pod), *_reach(pod), *more, command)


def host(verb: str, *arguments: str) -> Argv:
    """The words of a command of `host.sh`."""
    return ("bash", f"{FOLDER}/host.sh", verb, *arguments)


def _reach(pod: Place) -> Argv:
    return (*(("--tunnel-through-iap",) if pod.tunnel else ()), "--quiet")
