"""Runs Triton kernels on the CPU, in Triton's interpreter, from inside JAX programs.

Set TRITON_INTERPRET=1 before anything imports triton. The interpreter works on PyTorch tensors and
is meant for small shapes: it tells what a kernel computes, not how fast. Programs run one after the
other, the last of the grid first: a GPU promises no order, and a kernel that relies on one waits
for ever. Outputs start as NaN (or a large number), so what a kernel forgets shows.
"""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from ratjax_kernels.triton_call import Launch

_UNWRITTEN = 0x7B
_one_at_a_time = threading.Lock()  # the interpreter keeps its state in modules
_patch_tensor = interpreter._patch_lang_tensor


def _with_loop_bounds(tensor, scope):
    """NumPy 2.4 no longer turns arrays of one element into loop bounds; Triton 3.6 relies on it."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _with_loop_bounds

# The interpreter keeps bfloat16 as its bits: it truncates where a GPU rounds to nearest, and it
# multiplies the bits themselves.
_Builder, _Handle, _BFLOAT16 = interpreter.InterpreterBuilder, interpreter.TensorHandle, tl.bfloat16
_cast, _dot, _set_grid_idx = _Builder.cast_impl, _Builder.create_dot, _Builder.set_grid_idx


def _widened(x):
    if x.dtype.scalar != _BFLOAT16:
        return x
    return _Handle(x.data.view(jnp.bfloat16).astype(np.float32), tl.float32)


def _cast_rounding(self, x, dtype):
    if dtype.scalar == _BFLOAT16 and x.dtype.scalar == tl.float32:
        return _Handle(x.data.astype(jnp.bfloat16).view(np.uint16), _BFLOAT16)
    if dtype.scalar == tl.float32:
        x = _widened(x)
    return _cast(self, x, dtype)


def _dot_of_values(self, a, b, *rest):
    return _dot(self, _widened(a), _widened(b), *rest)


_Builder.cast_impl, _Builder.create_dot = _cast_rounding, _dot_of_values


def _set_grid_idx_from_the_end(self, *index):
    _set_grid_idx(self, *(n - 1 - i for i, n in zip(index, self.grid_dim, strict=True)))


_Builder.set_grid_idx = _set_grid_idx_from_the_end


def interpret(launch: Launch, inputs):
    """The outputs of `launch` on `inputs`; may be traced."""

    def run(*arrays):
        tensors = [_tensor(np.array(a)) for a in arrays]  # copies: kernels may write in place
        by_output = {out: tensors[i] for i, out in launch.aliases.items()}
        results = [
            by_output[i] if i in by_output else _fresh(spec, i in launch.zeroed)
            for i, spec in enumerate(launch.outputs)
        ]
        with _one_at_a_time:
            launch.kernel[launch.grid](*tensors, *results, **launch.constants)
        return tuple(_array(r, spec.dtype) for r, spec in zip(results, launch.outputs, strict=True))

    return tuple(jax.pure_callback(run, launch.outputs, *inputs, vmap_method="sequential"))


def _fresh(spec, zeroed):
    if zeroed:
        return _tensor(np.zeros(spec.shape, spec.dtype))
    if np.issubdtype(spec.dtype, np.integer):
        return _tensor(np.full(spec.shape, _UNWRITTEN, spec.dtype))
    return _tensor(np.full(spec.shape, np.nan, spec.dtype))


def _tensor(array):
    if array.dtype == jax.numpy.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor, dtype):
    if dtype == jax.numpy.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtype)
    return tensor.numpy()
