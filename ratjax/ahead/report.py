"""Everything known of a compiled program, as numbers for scripts and as lines for people."""

import dataclasses
from typing import Any

import jax

from ratjax.ahead.arithmetic import matmul_flops
from ratjax.ahead.collectives import Collective, collectives
from ratjax.ahead.custom_calls import Kernel, kernels
from ratjax.ahead.executions import executions
from ratjax.ahead.hlo import parse
from ratjax.ahead.memory import Memory, memory_of
from ratjax.ahead.overflow import Overflow, remedy
from ratjax.ahead.programs import Program
from ratjax.ahead.roofline import Roofline, roofline
from ratjax.ahead.topology import GIB, Topology
from ratjax.ahead.traffic import hbm_bytes
from ratjax.config.model import ModelConfig

# JAX's kernels for dense attention, which say nothing of their own work.
_DENSE = "splash"


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled program, per chip and per run.

    Attributes:
      memory: what it takes.
      matmul_flops: of the matrix products in the program's text, loops and recomputation counted.
      kernel_flops: inside kernels, whose work is not in the text: as their authors estimated it,
        and by the formula of `ratjax.train.flops` for dense attention.
      xla_flops: XLA's own count, in which the body of a loop counts once.
      hbm_bytes: moved to and from the main memory.
      collectives: exchanges with other chips.
      kernels: Pallas kernels.
      unknown_loops: loops whose turns are not in the text, counted once.
      roofline: the step's time at best.
    """

    memory: Memory
    matmul_flops: float
    kernel_flops: float
    xla_flops: float
    hbm_bytes: float
    collectives: list[Collective]
    kernels: list[Kernel]
    unknown_loops: int
    roofline: Roofline


def report(
    compiled: jax.stages.Compiled, program: Program, topology: Topology, recomputes: bool
) -> Report:
    """Reads a compiled program.

    Args:
      compiled: the program.
      program: what it was compiled from.
      topology: what it was compiled for.
      recomputes: whether the backward pass runs attention's forward pass again.
    """
    module = parse(compiled.as_text())
    runs, unknown = executions(module)
    found = kernels(module, runs)
    inside = sum((kernel.flops or 0.0 for kernel in found), 0.0)
    if any(kernel.name.startswith(_DENSE) for kernel in found):
        inside += _executed_attention(program, recomputes)
    exchanged = collectives(module, runs, program.devices)
    calculated, moved = matmul_flops(module, runs), hbm_bytes(module, runs)
    return Report(
        memory_of(compiled, program.parameters, program.optimizer),
        calculated,
        inside,
        compiled.cost_analysis().get("flops", 0.0),
        moved,
        exchanged,
        found,
        unknown,
        roofline(
            topology.chip,
            calculated + inside,
            moved,
            sum((c.received for c in exchanged), 0.0),
            program.model_flops / program.devices,
        ),
    )


def _executed_attention(program: Program, recomputes: bool) -> float:
    """Attention's operations on each chip: its backward kernels run seven products for two."""
    share = program.dense_flops / program.devices
    if program.name != "train":
        return share
    forward = share / 3
    return forward * (1 + recomputes + 3.5)


def as_json(found: Report, program: Program, topology: Topology) -> dict[str, Any]:
    """The numbers, as JSON types. Bytes and operations are per chip and run."""
    line, memory = found.roofline, found.memory
    peak, available = memory.peak, topology.chip.hbm_bytes
    return {
        "fits": peak <= available,
        "hbm_bytes_per_chip": peak,
        "hbm_available_per_chip": available,
        "memory": dataclasses.asdict(memory),
        "flops": found.matmul_flops + found.kernel_flops,
        "flops_in_program": found.matmul_flops,
        "flops_in_kernels": found.kernel_flops,
        "flops_by_xla": found.xla_flops,
        "flops_of_model": program.model_flops / program.devices,
        "hbm_bytes_moved": found.hbm_bytes,
        "ici_bytes_received": sum(c.received for c in found.collectives),
        "collectives": _by_kind(found.collectives),
        "kernels": {kernel.name: kernel.sites for kernel in found.kernels},
        "kernel_runs": {kernel.name: kernel.runs for kernel in found.kernels},
        "step_seconds": line.seconds,
        "step_seconds_without_overlap": line.without_overlap,
        "bound": line.bound,
        "mfu": line.mfu,
        "tokens_per_second": program.tokens / line.seconds,
    }


def _by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for collective in found:
        total = kinds.setdefault(collective.kind, {"count": 0, "bytes_received": 0.0})
        total["count"] += collective.count
        total["bytes_received"] += collective.received
    return kinds


def lines(found: Report, program: Program, topology: Topology) -> list[str]:
    """The same for people."""
    memory, line, chip = found.memory, found.roofline, topology.chip
    verdict = "fits" if memory.peak <= chip.hbm_bytes else "does not fit"
    text = ["memory of each chip, by the compiler"]
    for name, size in dataclasses.asdict(memory).items():
        text.append(f"  {name:<12}{size / GIB:10.3f} GiB")
    text.append(
        f"  {'peak':<12}{memory.peak / GIB:10.3f} GiB of {chip.hbm_bytes / GIB:g}: {verdict}"
    )
    text += [
        "operations of each chip in one run",
        f"  {found.matmul_flops / 1e12:12.3f} TFLOP in its matrix products, loops counted",
        f"  {found.kernel_flops / 1e12:12.3f} TFLOP in kernels, as estimated",
        f"  {program.model_flops / program.devices / 1e12:12.3f} TFLOP that the model needs",
        f"  {found.xla_flops / 1e12:12.3f} TFLOP by XLA's cost analysis, which counts loops once",
        f"  {found.hbm_bytes / 1e9:12.3f} GB to and from HBM",
    ]
    if found.unknown_loops:
        text.append(
            f"  {found.unknown_loops} loops run for a number of turns that the program finds"
        )
    text.append("exchanged with other chips in one run" if found.collectives else "no exchanges")
    for c in found.collectives[:12]:
        text.append(
            f"  {c.kind} of {c.array} among {c.group}: {c.count} times, "
            f"{c.received / 1e9:.3f} GB received"
        )
    if len(found.collectives) > 12:
        rest = found.collectives[12:]
        text.append(f"  {len(rest)} more: {sum(c.received for c in rest) / 1e9:.3f} GB received")
    text.append("kernels" if found.kernels else "no kernels: everything is XLA's")
    for kernel in found.kernels:
        text.append(f"  {kernel.name}: {kernel.sites} in the program, {kernel.runs} runs")
    text += [
        f"at best {line.seconds:.4g} s, bound by {line.bound} (compute {line.compute:.4g}, HBM "
        f"{line.memory:.4g}, links {line.network:.4g}; {line.without_overlap:.4g} without overlap)",
        f"at best {program.tokens / line.seconds:,.0f} tokens/s, {100 * line.mfu:.1f} % MFU",
    ]
    return text


def overflow_json(found: Overflow) -> dict[str, Any]:
    """What is known of a program that does not fit."""
    return {
        "fits": False,
        "hbm_bytes_per_chip": found.used if found.memory == "hbm" else None,
        "hbm_available_per_chip": found.available if found.memory == "hbm" else None,
        "exceeds": found.memory,
        "largest_buffers": [
            {"bytes": b.bytes, "shape": b.shape, "kind": b.kind, "made_by": b.made_by}
            for b in found.buffers[:10]
        ],
    }


def overflow_lines(
    found: Overflow, model: ModelConfig, length: int, trains: bool = True
) -> list[str]:
    """The same for people, with the field that would help, for each buffer."""
    if found.of_kernel:
        return [f"does not fit: {found.of_kernel}"]
    text = [
        f"does not fit: needs {found.used / GIB:.2f} GiB of {found.memory} where there are "
        f"{found.available / GIB:.2f}; the largest buffers:"
    ]
    for b in found.buffers[:8]:
        made = f" ({b.made_by.rsplit('/', 2)[-1]})" if b.made_by else ""
        text.append(f"  {b.bytes / GIB:.3f} GiB {b.kind} {b.shape}{made}")
        text.append(f"      {remedy(b, model, length, trains)}")
    return text
