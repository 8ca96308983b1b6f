"""A pod as it was asked for, and the program to run on it: checked before anything is rented."""

import dataclasses
import re

from launch.pods.machines import PRICES_OF, machine_of
from launch.pods.xla_flags import joined, tpu_flags
from ratjax.ahead.topology import Topology, near_slices, parse_topology
from ratjax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a pod is, or will be.

    Attributes:
      name: of the queued resource; a pod of one slice has one node of the same name, several
        slices have nodes `<name>-0`, `<name>-1`, ...
      zone: Google Cloud's.
      project: likewise.
      tunnel: reach the machines through Identity-Aware Proxy, where they have no public address.
    """

    name: str
    zone: str
    project: str
    tunnel: bool = False

    def __post_init__(self):
        # Names of queued resources are also those of nodes and of hosts.
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise InputError(
                f"--pod={self.name}: must be at most 40 small letters, digits and dashes, and "
                "begin with a letter"
            )
        check_zone(self.zone, self.project)


def check_zone(zone: str, project: str) -> None:
    """Raises `InputError` unless both can be names of what they should be."""
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone):
        raise InputError(f"--zone={zone}: must be a zone such as us-east5-a")
    if not re.fullmatch(r"[a-z0-9.:-]+", project):
        raise InputError(f"--project={project}: must be a project's id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod(Place):
    """One slice, or several of the same shape.

    Attributes:
      topology: of each slice.
      slices: how many.
      spot: cheaper, and can be taken away at any moment.
      reserved: from the project's reservation.
      network: other than `default`.
      service_account: other than Compute Engine's default; it needs to read and write the bucket.
    """

    topology: Topology
    slices: int = 1
    spot: bool = False
    reserved: bool = False
    network: str = ""
    service_account: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.spot and self.reserved:
            raise InputError("--spot --reserved: choose one of the two")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The slices, as Cloud TPU names them."""
        if self.slices == 1:
            return (self.name,)
        return tuple(f"{self.name}-{index}" for index in range(self.slices))

    @property
    def hosts(self) -> int:
        """Machines of all slices; one process each."""
        return self.slices * self.topology.hosts

    @property
    def chips(self) -> int:
        return self.slices * self.topology.chips

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of every process."""
        return {"LIBTPU_INIT_ARGS": joined(tpu_flags(self.topology.chip.name, self.slices))}

    def describe(self) -> str:
        """One line."""
        pod = f"{self.slices} x {self.topology}" if self.slices > 1 else str(self.topology)
        hosts = "1 host" if self.hosts == 1 else f"{self.hosts} hosts"
        hour = self.chips * machine_of(self.topology).dollars
        price = f"${hour:,.2f} an hour on demand ({PRICES_OF}; storage and network aside)"
        if self.spot:
            price = f"spot; {price}"
        return f"{self.name}: {pod}, {self.chips} chips, {hosts}; {price}"


def rented(name: str) -> Topology:
    """A slice that can be asked for by its accelerator type.

    Raises:
      InputError: no such slice; the message names those that are near.
    """
    topology = parse_topology(name)
    try:
        known = parse_topology(topology.accelerator_type)
    except InputError:
        known = None
    if known != topology:
        if known:
            instead = f"{topology.accelerator_type} is {known}"
        else:
            near = near_slices(topology.chip, topology.chips * topology.chip.cores)
            instead = f"{' or '.join(map(str, near))} can be"
        raise InputError(f"--topology={name}: not a shape that is rented; {instead}")
    return topology


def flag_of(program: tuple[str, ...], name: str) -> str | None:
    """The value of a program's flag; the last one counts, as absl has it."""
    found = None
    for index, argument in enumerate(program):
        if match := re.fullmatch(rf"--?{name}(?:=(.*))?", argument, re.DOTALL):
            found = match[1] if match[1] is not None else next(iter(program[index + 1 :]), "")
    return found


def check_program(pod: Pod, program: tuple[str, ...]) -> None:
    """Raises `InputError` where a program would go wrong on a pod."""
    if not program:
        raise InputError(
            "nothing to run; end the line with -- python -m launch.train --config=... "
            "--workdir=gs://..."
        )
    if "launch.train" not in program:
        return
    workdir = flag_of(program, "workdir")
    if not (workdir or "").startswith("gs://"):
        raise InputError(
            f"--workdir={workdir}: must begin with gs://: what is written to a pod's own disks is "
            "lost with them, and each host would write a part"
        )
    if pod.hosts > 1 and flag_of(program, "coordinator") != "auto":
        raise InputError(
            f"launch.train on {pod.hosts} hosts needs --coordinator=auto: without it each of them "
            "trains alone"
        )
