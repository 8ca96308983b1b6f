"""What a program's devices send each other."""

import dataclasses
import math
import re
from collections.abc import Mapping

from ratjax.ahead.hlo import Instruction, Module

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal exchanges of one program.

    Attributes:
      kind: XLA's name of it.
      array: what each device puts in, such as `bf16[256,8,128]`.
      group: devices that exchange with each other.
      bytes: of the whole array that is gathered, reduced or exchanged.
      count: how often it runs in one run of the program.
    """

    kind: str
    array: str
    group: int
    bytes: int
    count: int

    @property
    def received(self) -> float:
        """Bytes that reach each device in all, if rings carry them.

        A gathering or scattering device receives all but its own part; a reduction is a
        scattering and a gathering.
        """
        share = (self.group - 1) / self.group
        if self.kind == "all-reduce":
            share *= 2
        if self.kind in ("collective-permute", "collective-broadcast"):
            share = 1.0 if self.group > 1 else 0.0
        return self.count * self.bytes * share


def collectives(module: Module, runs: Mapping[str, int], devices: int) -> list[Collective]:
    """Every kind of exchange, most bytes first; those within one device are none.

    Args:
      module: the program.
      runs: how often each computation runs (`executions`).
      devices: how many run it.
    """
    counts: dict[tuple, int] = {}
    for computation, body in module.computations.items():
        for instruction in body.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or runs.get(computation, 0) == 0:
                continue
            inputs = [s for name in instruction.operands for s in body[name].shapes]
            group = _group_size(instruction, devices)
            if group == 1:
                continue
            whole = sum(shape.bytes for shape in inputs) * (group if kind == "all-gather" else 1)
            if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # as the TPU's compiler writes one
            key = (kind, ", ".join(map(str, inputs)), group, whole)
            counts[key] = counts.get(key, 0) + runs[computation]
    found = [Collective(*key, count) for key, count in counts.items()]
    return sorted(found, key=lambda c: -c.received)


def _group_size(instruction: Instruction, devices: int) -> int:
    if instruction.opcode.startswith("collective-permute"):
        pairs = instruction.rest.partition("source_target_pairs=")[2]
        return 2 if re.match(r"\{\{(\d+),(?!\1\})", pairs) else 1
    groups = instruction.rest.partition("replica_groups=")[2]
    if named := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", groups):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        # A part of an axis reads 'axis':(before)size.
        used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in used)
    if tiled := re.match(r"\[([\d,]+)\]<=", groups):
        return int(tiled[1].split(",")[-1])
    listed = re.match(r"\{\{([\d,]*)\}", groups)
    return len(listed[1].split(",")) if listed and listed[1] else devices
