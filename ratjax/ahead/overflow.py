"""A program that does not fit, in the compiler's words: how much is missing, and what is large."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ratjax.ahead.hlo import arrays
from ratjax.config.model import ModelConfig
from ratjax.model.parameters import abstract_parameters

MIB = 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"[\d.]+[KMGT]?"
_FORMS = (
    rf"memory space (?P<memory>\w+)\. Used (?P<used>{_SIZE}) of (?P<available>{_SIZE})",
    rf"HLO temporaries \((?P<used>{_SIZE})\) exceeds available HBM \((?P<available>{_SIZE})\)",
    # One kernel: its temporaries, or what it was given.
    rf"memory space (?P<memory>\w+) while allocating(?s:.*?) allocation with size "
    rf"(?P<used>{_SIZE}) and limit (?P<available>{_SIZE})",
    r"Allocation \(size=(?P<used>\d+)\) would exceed memory \(size=(?P<available>\d+)\)(?s:.*?)"
    r"space=(?P<memory>\w+)",
)


class Buffer(NamedTuple):
    """One of the largest arrays of a program.

    Attributes:
      bytes: with the padding of its layout.
      shape: as XLA prints it.
      dims: sizes of its axes.
      made_by: what computes it, in JAX's terms; empty for arguments and results.
      kind: `temporary`, `argument` or `result`.
    """

    bytes: int
    shape: str
    dims: tuple[int, ...]
    made_by: str
    kind: str


class Overflow(NamedTuple):
    """How a program exceeds a memory.

    Attributes:
      memory: `hbm`, or `vmem` where a kernel is too large for the scratchpad.
      used: bytes that it needs.
      available: bytes that there are.
      buffers: the largest first; copies and aliases of one another once.
      kernel: the one that is too large, in JAX's terms; empty where that is not known.
    """

    memory: str
    used: int
    available: int
    buffers: tuple[Buffer, ...]
    kernel: str = ""

    @property
    def of_kernel(self) -> str | None:
        """One line on a kernel that is too large for the chip's own memory; None of HBM."""
        if self.memory == "hbm":
            return None
        name = f" {self.kernel}" if self.kernel else ""
        return (
            f"the kernel{name} needs {self.used / MIB:.1f} MiB of {self.memory} where there are "
            f"{self.available / MIB:.1f}: it should have refused these shapes, so please report "
            "them; until then another head_dim, block size or batch may do"
        )


def parse_overflow(message: str) -> Overflow | None:
    """What the compiler says of a program that is too large; None where it says something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for form in _FORMS:
        if found := re.search(form, message):
            memory = found.groupdict().get("memory", "hbm")
            used, available = (_bytes(found[name]) for name in ("used", "available"))
            named = re.search(r'op_name="([^"]*)"', message) if memory != "hbm" else None
            kernel = named[1] if named else ""
            return Overflow(memory, used, available, tuple(_buffers(message)), kernel)
    return None


def _buffers(message: str) -> list[Buffer]:
    found: dict[tuple, Buffer] = {}
    for entry in re.split(r"\n\s+\d+\. Size: ", message)[1:]:
        size = re.match(_SIZE, entry)
        shape = re.search(r"Shape: (\S+)", entry)
        operator = re.search(r'op_name="([^"]*)"', entry)
        label = re.search(r"XLA label: (\w+)", entry)
        if shape is None or label is None:
            continue
        kind = {"Argument": "argument", "Output": "result"}.get(label[1], "temporary")
        array = arrays(shape[1])[0]
        buffer = Buffer(
            _bytes(size[0]), str(array), array.dims, operator[1] if operator else "", kind
        )
        found.setdefault((buffer.shape, buffer.made_by, kind), buffer)
    return sorted(found.values(), key=lambda b: -b.bytes)


def _bytes(size: str) -> int:
    unit = size[-1] if size[-1] in _UNITS else ""
    return int(float(size.removesuffix(unit)) * _UNITS[unit])


def arguments(tree: Any) -> tuple[Buffer, ...]:
    """A program's arguments as buffers, for where the compiler's message names none."""
    found = []
    for leaf in jax.tree.leaves(tree):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            dims = leaf.sharding.shard_shape(leaf.shape)
            size = math.prod(dims) * leaf.dtype.itemsize
            shape = f"{leaf.dtype}[{','.join(map(str, dims))}]"
            found.append(Buffer(size, shape, dims, "", "argument"))
    return tuple(sorted(found, key=lambda b: -b.bytes))


def remedy(buffer: Buffer, model: ModelConfig, length: int, trains: bool = True) -> str:
    """The field that makes a buffer smaller, and how to change it.

    Args:
      buffer: one of `Overflow.buffers`.
      model: what is trained or run.
      length: tokens of a sequence.
      trains: whether the program is a training step.
    """
    dims = buffer.dims
    if not trains:
        whole = {array.shape for array in abstract_parameters(model).values()}
        weights = dims in whole or dims in {shape[1:] for shape in whole}  # of all layers, or one
        # A cache has layers, prompts, slots, heads, channels.
        if not weights and (length in dims or len(dims) == 5):
            return "lower needle.batch_size or needle.context_length"
        return "choose a chip with more memory: inference runs on one chip"
    if buffer.kind != "temporary":
        return "raise mesh.fsdp or mesh.tensor: parameters and optimizer state are cut over them"
    if dims.count(length) >= 2:
        return "scores of whole sequences: a kernel fell back to XLA; see the warnings above"
    vocabulary = any(size > 1 and model.vocab_size % size == 0 for size in dims if size >= 4096)
    if vocabulary and length not in dims and model.hidden_size not in dims:
        return "lower train.loss_chunk, or raise train.microbatches: logits"
    if length not in dims and (vocabulary or model.hidden_size in dims):
        return "raise mesh.fsdp or mesh.tensor: gradients or gathered parameters"
    if len(dims) > 3 and dims[0] == model.num_layers:
        return "set model.remat=full, or raise train.microbatches: activations kept for each layer"
    return "raise train.microbatches, mesh.tensor or mesh.context: activations"
