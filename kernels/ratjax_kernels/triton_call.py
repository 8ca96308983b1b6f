"""The one place that launches Triton kernels from JAX.

On a CUDA device a launch goes through jax-triton, whose 0.3 and 0.4 differ in the name of one
argument. Its custom call can neither be batched nor differentiated, so operations wrap what they
launch in `batching.merge_vmap` and `jax.custom_vjp`. Without a GPU there are two more ways:
Triton's interpreter (`ratjax_kernels.triton_interpreter`, where TRITON_INTERPRET=1 is set), and to
record what would be launched, so that it can be compiled ahead (`ratjax_kernels.triton_ahead`).
"""

import contextlib
import dataclasses
import functools
import inspect
import os

import jax
import jax.numpy as jnp

from ratjax_kernels.dispatch import platform
from ratjax_kernels.manual_axes import vary_together
from ratjax_kernels.triton_cache import keep_compiled

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

_records: list["Launch"] | None = None


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel and everything its machine code depends on.

    Attributes:
      kernel: the `triton.jit` function: pointers to inputs, pointers to outputs, then constants.
      inputs: shapes and dtypes of the arrays read.
      outputs: shapes and dtypes of the arrays written.
      grid: the number of programs along up to three axes.
      aliases: input position -> output position that shares its memory.
      zeroed: positions in `outputs` that are zero at the start.
      num_warps: warps of a program.
      num_stages: depth of the software pipeline.
      constants: `tl.constexpr` arguments by name.
    """

    kernel: object
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    grid: tuple[int, ...]
    aliases: dict[int, int]
    zeroed: tuple[int, ...]
    num_warps: int
    num_stages: int
    constants: dict[str, object]


def launch(
    kernel, inputs, outputs, grid, zeroed=(), aliases=None, num_warps=4, num_stages=2, **constants
):
    """Runs a Triton kernel.

    Args:
      kernel: takes pointers to `inputs`, then to `outputs`, then `constants` by name.
      inputs: arrays.
      outputs: `jax.ShapeDtypeStruct`s.
      grid: the number of programs along up to three axes.
      zeroed: positions in `outputs` that must be zero at the start.
      aliases: input position -> output position written in its place. The kernel gets one pointer
        for the input and the same one for the output.
      num_warps: warps of a program.
      num_stages: depth of the software pipeline.
      **constants: the kernel's `tl.constexpr` arguments.

    Returns:
      The outputs, as a tuple.
    """
    described = Launch(
        kernel,
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs),
        tuple(outputs),
        tuple(grid),
        dict(aliases or {}),
        tuple(zeroed),
        num_warps,
        num_stages,
        constants,
    )
    if _records is not None:
        _records.append(described)
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)
    if INTERPRETED:
        from ratjax_kernels.triton_interpreter import interpret

        return vary_together(interpret(described, inputs), like=inputs)
    call, out_name = _triton_call()
    result = call(
        *inputs,
        kernel=kernel,
        grid=described.grid,
        num_warps=num_warps,
        num_stages=num_stages,
        zeroed_outputs=described.zeroed,
        input_output_aliases=described.aliases,
        **{out_name: described.outputs},
        **constants,
    )
    return vary_together(tuple(result), like=inputs)


@functools.cache
def _triton_call():
    """jax-triton's function, and its name for the outputs' types."""
    cache_dir = os.environ.get("TRITON_CACHE_DIR")
    import jax_triton
    import jax_triton.triton_lib

    keep_compiled(jax_triton.triton_lib)
    # jax-triton 0.3 turns Triton's cache off for the whole process by setting an empty folder.
    if os.environ.get("TRITON_CACHE_DIR") == "" and cache_dir is None:
        del os.environ["TRITON_CACHE_DIR"]
    parameters = inspect.signature(jax_triton.triton_call).parameters
    return jax_triton.triton_call, "out_type" if "out_type" in parameters else "out_shape"


@contextlib.contextmanager
def recording():
    """Collects launches instead of making them: for tracing with `jax.eval_shape`, on any device.

    Yields:
      The list that fills up, in launch order. Functions traced before are not traced again, so
      call `jax.clear_caches()` first where an operation hides behind `jax.jit`.
    """
    global _records
    before, _records = _records, []
    try:
        yield _records
    finally:
        _records = before


# Older GPUs have no bfloat16, and little shared memory.
OLDEST = 8.0


def device_problem(*arrays) -> str | None:
    """Why no Triton kernel can serve these arrays here; None: one can."""
    cuda = platform() == "gpu" and capability()[:1].isdigit()
    if not cuda and not INTERPRETED and _records is None:
        return "needs a CUDA device"
    if cuda and float(capability()) < OLDEST:
        return f"needs compute capability {OLDEST}, this GPU has {capability()}"
    for array in arrays:
        if array.dtype not in DTYPES:
            return f"serves float32, bfloat16 and float16, not {array.dtype}"
    return None


# Compute capabilities with 99 KiB of shared memory a program; data-centre GPUs have 163 or more.
SMALL_SHARED_MEMORY = ("8.6", "8.9", "12.0", "12.1")


def capability() -> str:
    """The compute capability of the default device, such as "9.0"; empty where it has none."""
    return str(getattr(jax.devices()[0], "compute_capability", ""))


def shared_memory_problem() -> str | None:
    """Why tiles made for data-centre GPUs cannot run here; None: they can."""
    if capability() in SMALL_SHARED_MEMORY:
        return f"needs 160 KiB of shared memory, compute capability {capability()} has 99"
    return None


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and `least`; Triton's tiles are such."""
    return max(1 << (n - 1).bit_length(), least)


def precision(dtype) -> str:
    """`input_precision` of a product: float32 stays float32."""
    return "ieee" if dtype == jnp.float32 else "tf32"
