"""The one place that launches Triton kernels from JAX.

jax-triton 0.3 and 0.4 differ in the name of one argument. Its custom call can neither be batched
nor differentiated, so operations wrap what they launch in `merge_vmap` and `jax.custom_vjp`.
"""

import inspect
import os

import jax
import jax.numpy as jnp

_cache_dir = os.environ.get("TRITON_CACHE_DIR")
import jax_triton  # noqa: E402

# jax-triton 0.3 turns Triton's cache off for the whole process by setting an empty folder.
if os.environ.get("TRITON_CACHE_DIR") == "" and _cache_dir is None:
    del os.environ["TRITON_CACHE_DIR"]

_OUT = (
    "out_type"
    if "out_type" in inspect.signature(jax_triton.triton_call).parameters
    else "out_shape"
)

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def launch(kernel, inputs, outputs, grid, zeroed=(), num_warps=4, num_stages=2, **constants):
    """Runs a Triton kernel.

    Args:
      kernel: takes pointers to `inputs`, then to `outputs`, then `constants` by name.
      inputs: arrays.
      outputs: `jax.ShapeDtypeStruct`s.
      grid: the number of programs along up to three axes.
      zeroed: positions in `outputs` that must be zero at the start.
      num_warps: warps of a program.
      num_stages: depth of the software pipeline.
      **constants: the kernel's `tl.constexpr` arguments.

    Returns:
      The outputs, as a tuple.
    """
    result = jax_triton.triton_call(
        *inputs,
        kernel=kernel,
        grid=grid,
        num_warps=num_warps,
        num_stages=num_stages,
        zeroed_outputs=zeroed,
        **{_OUT: tuple(outputs)},
        **constants,
    )
    return tuple(result)


def device_problem(*arrays) -> str | None:
    """Why no Triton kernel can serve these arrays here; None: one can."""
    if jax.default_backend() != "gpu":
        return "needs a CUDA device"
    for array in arrays:
        if array.dtype not in DTYPES:
            return f"serves float32, bfloat16 and float16, not {array.dtype}"
    return None


def merge_vmap(function):
    """Gives `function` a batching rule: the mapped axis joins the batch, axis 0 of everything."""
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(size, batched, *args):
        merged = []
        for arg, is_batched in zip(args, batched, strict=True):
            if not is_batched:
                arg = jnp.broadcast_to(arg, (size, *arg.shape))
            merged.append(arg.reshape(size * arg.shape[1], *arg.shape[2:]))
        out = wrapped(*merged)
        split = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), out)
        return split, jax.tree.map(lambda _: True, out)

    return wrapped
