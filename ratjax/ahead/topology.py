"""Chips as their maker describes them, and pods of them by name."""

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from ratjax.ahead.libtpu import use_libtpu
from ratjax.errors import InputError, nearest
from ratjax.train.flops import peak_of

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU. One JAX device is one chip on all that are listed.

    From the system architecture pages of cloud.google.com/tpu/docs (v5e, v5p, v6e), but for
    `hbm_bytes`: what the compiler gives a program, which it says when one does not fit.

    Attributes:
      name: as in `v5p:4x4x4`.
      device_kind: JAX's name.
      hbm_bytes: main memory that a program may use.
      hbm_bandwidth: bytes a second between the chip and its main memory.
      ici_bandwidth: bytes a second that a chip can receive over all its links to other chips: half
        of the bidirectional figure.
      axes: of the grid or torus that the links make.
      cores: per chip, by which pods of v5p are counted in the names of accelerator types.
      accelerator: of accelerator types such as `v5litepod-64`.
      one_host: chips of the largest slice that is a single machine; larger ones are of machines
        with `chips_per_host`.
      chips_per_host: of machines that belong to more than one host.
    """

    name: str
    device_kind: str
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    axes: int
    cores: int
    accelerator: str
    one_host: int
    chips_per_host: int = 4

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 operations a second."""
        return peak_of(self.device_kind)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", int(15.75 * GIB), 819e9, 200e9, 2, 1, "v5litepod", 8),
        Chip("v5p", "TPU v5", int(95.74 * GIB), 2765e9, 600e9, 3, 2, "v5p", 4),
        Chip("v6e", "TPU v6 lite", int(31.25 * GIB), 1600e9, 400e9, 2, 1, "v6e", 8),
    )
}

# Slices that can be rented, by their number of chips; v5p has more shapes than these.
_SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SHAPES_3D = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8),
    (8, 8, 16), (8, 16, 16), (16, 16, 16),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips joined by their links.

    Attributes:
      chip: what it is made of.
      shape: chips along each axis.
    """

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self):
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Machines; each runs one process."""
        chip = self.chip
        return 1 if self.chips <= chip.one_host else self.chips // chip.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """The name by which it is rented, such as `v5p-128` for 64 chips of two cores."""
        return f"{self.chip.accelerator}-{self.chips * self.chip.cores}"

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Which axes are rings: those of whole cubes of v5p, and those as long as a pod of others.

        Without its rings a torus has no fast way to gather over all of its chips, and the compiler
        writes reductions instead.
        """
        if self.chip.axes == 3:
            return (all(size % 4 == 0 for size in self.shape),) * 3
        return tuple(size == 16 for size in self.shape)

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; none of them needs to be there.

        Raises:
          InputError: libtpu is missing, or knows no such slice.
        """
        use_libtpu()
        width, height, depth = (*self.shape, 1)[:3]
        try:
            found = topologies.get_topology_desc(
                str(self),
                "tpu",
                chips_per_host_bounds=(min(2, width), min(2, height), min(1, depth)),
                wrap=(*self.wrapped, False)[:3],
            )
        except Exception as error:  # of a kind that depends on the release of JAX
            reason = str(error).splitlines()[0]
            raise InputError(f"--topology={self}: refused by the compiler: {reason}") from None
        return list(found.devices)


def parse_topology(name: str) -> Topology:
    """The slice that a name means: `v5p:4x4x4`, or an accelerator type such as `v5p-128`.

    Raises:
      InputError: no such chip, or no such slice of it.
    """
    if shaped := re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name):
        shape = tuple(map(int, shaped[2].split("x")))
        chip = _chip(name, shaped[1])
        if len(shape) != chip.axes or 0 in shape:
            example = "4x4x4" if chip.axes == 3 else "8x8"
            raise InputError(
                f"--topology={name}: {chip.name} has {chip.axes} axes; write one as "
                f"{chip.name}:{example}"
            )
        return Topology(chip, shape)
    if counted := re.fullmatch(r"(\w+)-(\d+)", name):
        chip = _chip(name, counted[1])
        known = {Topology(chip, s).accelerator_type: s for s in _shapes(chip)}
        wanted = f"{chip.accelerator}-{counted[2]}"
        if wanted not in known:
            near = " or ".join(s.accelerator_type for s in near_slices(chip, int(counted[2])))
            raise InputError(f"--topology={name}: no such slice; {near} can be rented")
        return Topology(chip, known[wanted])
    raise InputError(f"--topology={name}: write one as v5p:4x4x4, v5e:8x8 or v6e-256")


def _chip(topology: str, name: str) -> Chip:
    named = {chip.accelerator: chip for chip in CHIPS.values()} | CHIPS
    if name not in named:
        raise InputError(f"--topology={topology}: no chip {name!r}; {nearest(name, named)}")
    return named[name]


def near_slices(chip: Chip, cores: int) -> list[Topology]:
    """Slices that can be rented: the largest with fewer cores, and the smallest with more."""
    known = sorted((Topology(chip, s) for s in _shapes(chip)), key=lambda t: t.chips)
    smaller = [t for t in known if t.chips * chip.cores <= cores][-1:]
    return smaller + [t for t in known if t.chips * chip.cores > cores][:1]


def _shapes(chip: Chip) -> tuple[tuple[int, ...], ...]:
    return _SHAPES_3D if chip.axes == 3 else _SHAPES_2D
