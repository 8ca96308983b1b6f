"""Floating-point operations of a program's matrix products, recomputation and loops included."""

import math
import re
from collections.abc import Mapping

import numpy as np

from ratjax.ahead.hlo import Instruction, Module, Shape


def matmul_flops(module: Module, runs: Mapping[str, int]) -> float:
    """Operations that one run of the program spends on one device in products of matrices.

    Two for each multiplication and addition. What kernels do inside is not in the text, and
    element-wise work is left out: it does not run on the matrix units.

    Args:
      module: the program.
      runs: how often each computation runs (`executions`).
    """
    total = 0.0
    for computation, body in module.computations.items():
        times = runs.get(computation, 0)
        if times == 0:
            continue
        for instruction in body.values():
            if instruction.opcode in ("dot", "convolution"):
                operands = [body[name].shapes[0] for name in instruction.operands]
                count = _dot if instruction.opcode == "dot" else _convolution
                total += times * count(instruction, *operands)
    return total


def _dot(instruction: Instruction, left: Shape, right: Shape) -> float:
    axes = instruction.attribute("lhs_contracting_dims") or ""
    contracted = math.prod(left.dims[int(axis)] for axis in axes.split(",") if axis)
    return 2.0 * instruction.shapes[0].elements * contracted


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> float:
    """A TPU's program has its matrix products as convolutions, batch axes as windows.

    Products with padding and with the gaps of dilation are not counted: a batched product is
    written with both, and they are skipped.
    """
    (out,) = instruction.shapes
    inputs, kernel, outputs = re.split("_|->", instruction.attribute("dim_labels"))
    flops = 2.0 * out.dims[outputs.index("b")] * out.dims[outputs.index("f")]
    flops *= right.dims[kernel.index("i")]
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute("window") or ""))
    for axis in range(len(outputs) - 2):
        sizes = (
            shape.dims[labels.index(str(axis))]
            for shape, labels in ((left, inputs), (right, kernel), (out, outputs))
        )
        settings = {name: value.split("x")[axis] for name, value in window.items()}
        flops *= _pairs(*sizes, settings)
    return flops


def _pairs(length: int, taps: int, outputs: int, window: dict[str, str]) -> int:
    """Pairs of an output position and a tap of the window that meet an input, along one axis."""
    low = int(window.get("pad", "0_0").split("_")[0])
    dilation = int(window.get("lhs_dilate", 1))
    start = np.arange(outputs)[:, None] * int(window.get("stride", 1)) - low
    position = start + np.arange(taps) * int(window.get("rhs_dilate", 1))
    reached = (position >= 0) & (position <= (length - 1) * dilation)
    return int((reached & (position % dilation == 0)).sum())
