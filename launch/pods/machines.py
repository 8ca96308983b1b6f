"""What each kind of TPU is rented as: images, machine types, labels, prices.

The chips themselves (memory, speed, shapes) are in `ratjax.ahead.topology`.
"""

import dataclasses

from ratjax.ahead.topology import Topology


@dataclasses.dataclass(frozen=True)
class Machine:
    """How one kind of chip is rented.

    Attributes:
      runtime: software version of its virtual machines, for `--runtime-version`: Ubuntu with
        Docker (cloud.google.com/tpu/docs/supported-tpu-versions, 2025-08).
      gke_accelerator: value of the label `cloud.google.com/gke-tpu-accelerator`.
      gke_machines: machine types of GKE's node pools by chips (cloud.google.com/tpu/docs/v5e, /v5p,
        /v6e and kubernetes-engine/docs/concepts/plan-tpus, 2026).
      dollars: list price of one chip for one hour on demand.
    """

    runtime: str
    gke_accelerator: str
    gke_machines: dict[int, str]
    dollars: float


# Prices: Cloud Billing's catalogue for us-central1. Other regions, and spot machines, have others;
# cloud.google.com/tpu/pricing has today's.
PRICES_OF = "2026-08-24, us-central1"

MACHINES = {
    "v5e": Machine(
        "v2-alpha-tpuv5-lite",
        "tpu-v5-lite-podslice",
        {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        1.20,
    ),
    "v5p": Machine("v2-alpha-tpuv5", "tpu-v5p-slice", {4: "ct5p-hightpu-4t"}, 4.20),
    "v6e": Machine(
        "v2-alpha-tpuv6e",
        "tpu-v6e-slice",
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        2.70,
    ),
}


def machine_of(topology: Topology) -> Machine:
    """How a slice's chips are rented."""
    return MACHINES[topology.chip.name]


def chips_per_host(topology: Topology) -> int:
    """Chips of each of a slice's machines."""
    return topology.chips // topology.hosts


def gke_machine(topology: Topology) -> str:
    """The machine type of a slice's node pool."""
    return machine_of(topology).gke_machines[chips_per_host(topology)]
