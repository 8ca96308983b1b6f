"""What one can do to a pod: ask for it, wait for it, set it up, start a program, ask how it is."""

import dataclasses
import importlib.metadata
import json
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

from launch import command
from launch.pods import gcloud
from launch.pods.execute import CommandFailed, Executor
from launch.pods.pod import Pod
from launch.pods.states import NODE_USABLE, Request, read_request
from ratjax.files import write_file

# Where the files that are sent are put together, in the checkout.
STAGING = pathlib.Path("runs", "pods")
HOST_SCRIPT = pathlib.Path(__file__).parent / "host.sh"
_STATUS = re.compile(r"^ratjax host=(\S+) state=(\w+) code=(\S*)$", re.MULTILINE)


class PodError(Exception):
    """A pod is not in the state that is needed. The message is one line."""


class PodGone(PodError):
    """The request was refused, or its machines were taken away."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A program, and what the machines need for it.

    Attributes:
      program: the command line.
      image: run it in this container; empty: in an environment made from this checkout.
      python: release of Python for that environment.
      fetch: pairs (folder of a bucket, folder in the checkout) that every host copies first.
      logs: a folder of a bucket that gets copies of the hosts' logs; empty: none.
      grace: seconds that a program has to save and end when it is stopped.
      revision: git's, of what is sent.
    """

    program: tuple[str, ...] = ()
    image: str = ""
    python: str = "3.12"
    fetch: tuple[tuple[str, str], ...] = ()
    logs: str = ""
    grace: int = 300
    revision: str = ""


class HostStatus(NamedTuple):
    """How the program is on one host; `state` as host.sh calls it."""

    host: str
    state: str
    code: str


class Session:
    """A pod, and commands to it."""

    def __init__(
        self,
        pod: Pod,
        job: Job,
        executor: Executor,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.pod, self.job, self.executor = pod, job, executor
        self.sleep, self.clock = sleep, clock
        # What a dry run, which asks nobody, takes the request's state to be.
        self.imagined = Request("ACTIVE")

    def request(self) -> Request:
        """The request's state.

        Raises:
          CommandFailed: Google Cloud could not be asked.
        """
        argv = gcloud.describe(self.pod)
        done = self.executor.run(argv, fails=True)
        if self.executor.dry:
            return self.imagined
        try:
            return read_request(done)
        except (ValueError, json.JSONDecodeError):
            raise CommandFailed(argv, done.code, done.err or done.out) from None

    def create(self) -> None:
        """Queues the request."""
        self.executor.say(self.pod.describe())
        self.executor.run(gcloud.create(self.pod))
        self.imagined = Request("ACTIVE")

    def wait(self, hours: float, every: float) -> None:
        """Waits until the machines are there, and says so whenever the state changes.

        Args:
          hours: at most.
          every: seconds between questions.

        Raises:
          PodGone: they will not come.
          PodError: it took longer.
        """
        start, last = self.clock(), None
        self.executor.say(f"waiting for {self.pod.name} to be ACTIVE, at most {hours:g} hours")
        while True:
            found = self.request()
            if found != last:
                self.executor.say(f"{self.pod.name}: {found}")
                last = found
            if found.verdict == "ready":
                return
            if found.verdict == "gone":
                raise PodGone(f"{self.pod.name}: {found}")
            if self.clock() - start > hours * 3600:
                raise PodError(
                    f"{self.pod.name}: still {found.state} after {hours:g} hours; the request "
                    "stays in the queue until `launch.pods delete`"
                )
            self.sleep(every)

    def delete(self) -> None:
        """Gives back nodes and request."""
        self.executor.run(gcloud.delete(self.pod))

    def nodes_usable(self) -> bool:
        """Whether every slice is there: a preempted one may still belong to an active request."""
        states = [
            self.executor.run(gcloud.describe_node(self.pod, node), fails=True).out.strip()
            for node in self.pod.nodes
        ]
        return self.executor.dry or all(state in NODE_USABLE for state in states)

    def setup(self) -> None:
        """Sends the code and installs it, or has the image pulled; copies what is to be fetched."""
        folder = STAGING / self.pod.name / gcloud.FOLDER
        self._stage(folder)
        # The first connection makes the key that the parallel ones then share.
        self.executor.run(gcloud.on_hosts(self.pod, ("true",), ("--worker=0", "--node=0")))
        self.executor.run(gcloud.copy(self.pod, folder))
        install = ("pull", self.job.image) if self.job.image else ("install", self.job.python)
        self.executor.run(gcloud.on_hosts(self.pod, gcloud.host(*install)), shown=True)
        for source, target in self.job.fetch:
            words = gcloud.host("fetch", source, target)
            self.executor.run(gcloud.on_hosts(self.pod, words), shown=True)

    def _stage(self, folder: pathlib.Path) -> None:
        dry = self.executor.dry
        if not dry:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HOST_SCRIPT, folder / HOST_SCRIPT.name)
        self.executor.say(f"{folder / HOST_SCRIPT.name}: launch/pods/{HOST_SCRIPT.name}")
        if self.job.image:
            return
        if self.job.revision.endswith("+changes"):
            command.warn("changes that are not committed are not sent to the pod")
        archive = folder / "source.tar.gz"
        self.executor.run(("git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"))
        if not dry:
            write_file(folder / "constraints.txt", constraints())
        self.executor.say(f"{folder / 'constraints.txt'}: the versions that are installed here")

    def start(self) -> None:
        """Starts the program on every host."""
        settings = [f"{name}={value}" for name, value in self.pod.environment.items()]
        if self.job.revision:
            sent = self.job.revision.removesuffix("+changes")  # which stay behind
            settings.append(f"RATJAX_REVISION={sent}")
        around = [
            f"{name}={value}"
            for name, value in (("IMAGE", self.job.image), ("LOGS", self.job.logs))
            if value
        ]
        words = gcloud.host("start", *settings, "--", *self.job.program)
        self.executor.run(
            gcloud.on_hosts(self.pod, ("env", *around, *words) if around else words), shown=True
        )

    def statuses(self) -> list[HostStatus]:
        """How the program is on each host that answers."""
        done = self.executor.run(gcloud.on_hosts(self.pod, gcloud.host("status")), fails=True)
        if self.executor.dry:
            return [HostStatus(str(h), "finished", "0") for h in range(self.pod.hosts)]
        return [HostStatus(*found.groups()) for found in _STATUS.finditer(done.out)]

    def stop(self) -> None:
        """Has the program save and end on every host."""
        words = gcloud.host("stop", str(self.job.grace))
        self.executor.run(gcloud.on_hosts(self.pod, words), fails=True)


def constraints() -> str:
    """The versions installed here, for `--constraint`: all hosts get the same, now and later."""
    found = {
        (d.metadata["Name"], d.version)
        for d in importlib.metadata.distributions()
        if "+" not in d.version and d.metadata["Name"] != "ratjax"
    }
    return "".join(f"{name}=={version}\n" for name, version in sorted(found))
