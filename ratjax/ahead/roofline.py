"""How fast a step can be at best on a chip, and what bounds it."""

import dataclasses

from ratjax.ahead.topology import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Times of one step if each unit of a chip did its share at full speed; seconds.

    Attributes:
      compute: executed floating-point operations over the peak of the matrix units.
      memory: bytes moved over the bandwidth of the main memory.
      network: bytes received from other chips over the bandwidth of all links together.
      mfu: the model's floating-point operations over what the chips could have done in `seconds`.
    """

    compute: float
    memory: float
    network: float
    mfu: float

    @property
    def seconds(self) -> float:
        """A lower bound: all three overlap perfectly."""
        return max(self.compute, self.memory, self.network)

    @property
    def without_overlap(self) -> float:
        """The same if nothing overlapped."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """The unit that the others wait for."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=times.get)


def roofline(chip: Chip, executed: float, moved: float, received: float, model: float) -> Roofline:
    """The roofline of a step.

    Args:
      chip: what it runs on.
      executed: floating-point operations of each chip, recomputation included.
      moved: bytes between each chip and its main memory.
      received: bytes that each chip gets from others.
      model: floating-point operations that the model needs, each chip's share.
    """
    compute = executed / chip.peak_flops
    memory, network = moved / chip.hbm_bandwidth, received / chip.ici_bandwidth
    return Roofline(
        compute, memory, network, model / chip.peak_flops / max(compute, memory, network, 1e-12)
    )
