"""The kernels in a program: custom calls that the TPU's compiler took as they were written."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from ratjax.ahead.hlo import Module

TARGET = "tpu_custom_call"


class Kernel(NamedTuple):
    """One kernel.

    Attributes:
      name: the `name` its `pl.pallas_call` was given.
      sites: places in the program that call it.
      runs: calls in one run of the program.
      flops: of all runs, as the kernel's author estimated them; None where there is no estimate.
    """

    name: str
    sites: int
    runs: int
    flops: float | None


def kernels(module: Module, runs: Mapping[str, int]) -> list[Kernel]:
    """The program's kernels by name."""
    found: dict[str, Kernel] = {}
    for computation, body in module.computations.items():
        times = runs.get(computation, 0)
        for instruction in body.values():
            if instruction.opcode != "custom-call" or times == 0:
                continue
            if f'custom_call_target="{TARGET}"' not in instruction.rest:
                continue
            name = re.sub(r"(\.\d+|\.clone|\.remat\d*)+$", "", instruction.name)
            estimate = _estimated_flops(instruction.attributes)
            before = found.get(name, Kernel(name, 0, 0, 0.0))
            unknown = before.flops is None or estimate is None
            found[name] = Kernel(
                name,
                before.sites + 1,
                before.runs + times,
                None if unknown else before.flops + times * estimate,
            )
    return sorted(found.values())


def _estimated_flops(attributes: str) -> float | None:
    found = re.search(r'"cost_estimate":(\{[^}]*\})', attributes)
    return float(json.loads(found[1])["flops"]) if found else None
