"""How Pallas kernels for TPUs are run: on a TPU, or in Pallas' TPU interpreter on any device.

A `Kernel` is a body with its grid, blocks and scratch memory. Before anything is lowered it adds up
what they take of VMEM, so that a shape that cannot fit is refused in words, not by the compiler.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.manual_axes import vary_together

# Of VMEM what a kernel may use unless it asks for more, on v5e and v5p; v6e grants twice as much.
VMEM_BYTES = 16 * 2**20
LANES, SUBLANES = 128, 8

_interpret = False


@contextlib.contextmanager
def interpreting(**switches):
    """Within it, TPU kernels run in Pallas' TPU interpreter, for tests on small shapes.

    Reads out of bounds raise, memory that nothing wrote is NaN, and races between a kernel and its
    copies are found. Functions traced before are not traced again.

    Args:
      **switches: further fields of `pltpu.InterpretParams`.
    """
    global _interpret
    strict = {
        "detect_races": True,
        "out_of_bounds_reads": "raise",
        "uninitialized_memory": "nan",
    }
    before, _interpret = _interpret, pltpu.InterpretParams(**strict | switches)
    try:
        yield
    finally:
        _interpret = before


def interpret():
    """What `pl.pallas_call`'s `interpret` should be."""
    return _interpret


def rows_of_tile(dtype) -> int:
    """Rows of a register that holds `dtype`: 8 of 32 bits, 16 of 16 bits."""
    return SUBLANES * max(4 // jnp.dtype(dtype).itemsize, 1)


def padded_bytes(shape, dtype) -> int:
    """What an array takes of VMEM, its last two axes padded to whole registers."""
    *outer, rows, lanes = (1, 1, *shape)
    tile = rows_of_tile(dtype)
    rows, lanes = -(-rows // tile) * tile, -(-lanes // LANES) * LANES
    return math.prod(outer) * rows * lanes * jnp.dtype(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A TPU kernel, its grid and its memory.

    Attributes:
      body: takes references: scalars, inputs, outputs, scratch.
      name: in profiles and in compiled programs.
      grid: steps along each axis.
      inputs: the arrays (or their shapes and dtypes) that `in_specs` cut up, scalars not included.
      in_specs: a `pl.BlockSpec` an input.
      outputs: shapes and dtypes.
      out_specs: a `pl.BlockSpec` an output.
      scratch: scratch memory.
      scalars: how many arrays are prefetched to scalar memory; they come first when called.
      aliases: input position, scalars not counted -> output position that shares its memory.
      semantics: of each axis of the grid, "parallel" or "arbitrary".
      cost: operations and bytes, for XLA's schedule.
      values: bytes of VMEM that the body's own large values take, such as a tile of scores.
      vmem: bytes of VMEM that it may use; more than `VMEM_BYTES` is asked for.
    """

    body: Callable
    name: str
    grid: tuple[int, ...]
    inputs: tuple
    in_specs: tuple[pl.BlockSpec, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    out_specs: tuple[pl.BlockSpec, ...]
    scratch: tuple = ()
    scalars: int = 0
    aliases: dict[int, int] = dataclasses.field(default_factory=dict)
    semantics: tuple[str, ...] | None = None
    cost: pl.CostEstimate | None = None
    values: int = 0
    vmem: int = VMEM_BYTES

    def vmem_bytes(self) -> int:
        """Blocks times their buffers (two, where a spec names no other number), scratch, values.

        What the compiler spills beside those values comes on top.
        """
        pairs = zip(self.in_specs, self.inputs, strict=True)
        outs = zip(self.out_specs, self.outputs, strict=True)
        blocks = sum(_block_bytes(spec, x) for spec, x in (*pairs, *outs))
        return (
            self.values
            + blocks
            + sum(
                padded_bytes(ref.shape, ref.dtype)
                for ref in self.scratch
                if getattr(ref, "memory_space", None) == pltpu.VMEM
            )
        )

    def problem(self) -> str | None:
        """Why the kernel cannot be lowered, in the words of `dispatch.Operation`; None: it can."""
        needs = self.vmem_bytes()
        if needs <= self.vmem:
            return None
        return f"needs {needs / 2**20:.1f} MiB of VMEM for its blocks, of {self.vmem / 2**20:.0f}"

    def __call__(self, *args) -> tuple[jax.Array, ...]:
        """Runs the kernel on its scalars and inputs.

        Raises:
          ValueError: its blocks do not fit into VMEM.
        """
        problem = self.problem()
        if problem:
            raise ValueError(f"{self.name}: {problem}")
        args = vary_together(args)
        axes = getattr(jax.typeof(args[-1]), "manual_axis_type", None)
        marked = {"manual_axis_type": axes} if getattr(axes, "varying", None) else {}
        out = pl.pallas_call(
            self.body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=self.scalars,
                grid=self.grid,
                in_specs=list(self.in_specs),
                out_specs=list(self.out_specs),
                scratch_shapes=list(self.scratch),
            ),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, **marked) for x in self.outputs],
            input_output_aliases={self.scalars + i: o for i, o in self.aliases.items()},
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=self.semantics,
                vmem_limit_bytes=self.vmem if self.vmem > VMEM_BYTES else None,
            ),
            cost_estimate=self.cost,
            interpret=interpret(),
            name=self.name,
        )(*args)
        return tuple(out)


def _block_bytes(spec, array) -> int:
    if spec.memory_space not in (None, pltpu.VMEM):
        return 0
    shape = array.shape if spec.block_shape is None else spec.block_shape
    buffers = getattr(spec.pipeline_mode, "buffer_count", 2)
    return buffers * padded_bytes(list(map(_extent, shape)), array.dtype)


def _extent(size) -> int:
    """Of a block along one axis: `pl.Element` holds its own, None is one that is left out."""
    return 1 if size is None else getattr(size, "block_size", size)


def dtype_problem(*arrays) -> str | None:
    """Why no TPU kernel serves these dtypes; None: one does."""
    for x in arrays:
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"serves float32 and bfloat16, not {x.dtype}"
    return None


def pad_to(x, axis: int, size: int, value=0):
    """`x` with `value` appended along `axis` until it holds `size`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=value)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(n for n in range(1, min(number, most) + 1) if number % n == 0)
