"""`append` as one TPU kernel that writes in place, heads before slots.

The order of the axes is that in which the decode kernels read a cache; what is swapped here is
swapped back there, so within one program nothing moves (`ratjax_kernels.paged_decode.pallas_tpu`).
A step takes the register rows around each sequence's new slot, and around its page's bounds, puts
the token in and writes them back: with 32 heads of 128 bfloat16 channels 0.5 MiB in and as much
out, 1.3 us of a v5e's 0.82 TB/s. That is an estimate: nothing was timed on a TPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ratjax_kernels.cache_append import batched
from ratjax_kernels.pallas_call import Kernel, dtype_problem, rows_of_tile


def limits_of_append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    arrays = (k, v, *(bounds or ()))
    if layer is None:
        arrays = tuple(jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in arrays)
    return dtype_problem(*arrays) or _kernel(page_size, *arrays).problem()


def append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.cache_append.api`."""
    return batched.append(_launch, k, v, lengths, k_new, v_new, bounds, page_size, layer)


def _launch(layer, lengths, k_new, v_new, stacks, page_size):
    kernel = _kernel(page_size, *stacks)
    swapped = (jnp.swapaxes(x, -3, -2) for x in (k_new, v_new, *stacks))
    out = kernel(layer.reshape(1), lengths, *swapped)
    return tuple(jnp.swapaxes(x, 2, 3) for x in out)


def _append_kernel(page_size, slots, layer_ref, lengths_ref, k_new_ref, v_new_ref, *refs):
    """new [heads, 1, D], caches and bounds [heads, rows, D]."""
    del layer_ref
    inputs, outputs = refs[: len(refs) // 2], refs[len(refs) // 2 :]
    length = lengths_ref[pl.program_id(0)]
    # The bounds are widened by the keys.
    arrived = (k_new_ref, v_new_ref, k_new_ref, k_new_ref)
    merges = (lambda new, old: new, lambda new, old: new, jnp.minimum, jnp.maximum)
    for n, (source, target) in enumerate(zip(inputs, outputs, strict=True)):
        at = length if n < 2 else lax.div(length, page_size)
        old = source[...].astype(jnp.float32)
        new = merges[n](arrived[n][...].astype(jnp.float32), old)
        row = lax.broadcasted_iota(jnp.int32, old.shape, 1)
        # A full sequence drops the token, and its page's bounds stay as they are.
        here = (row == lax.rem(at, old.shape[1])) & (length < slots)
        target[...] = jnp.where(here, new, old).astype(target.dtype)


def _kernel(page_size, *stacks):
    """The kernel for caches, and bounds if any, [L, B, slots, G, D]."""
    _, batch, slots, kv_heads, channels = stacks[0].shape
    new = pl.BlockSpec((None, kv_heads, 1, channels), lambda b, *_: (b, 0, 0, 0))
    arrived = tuple(jax.ShapeDtypeStruct((batch, kv_heads, 1, channels), x.dtype) for x in stacks)

    def rows_around(x, per_row):
        rows = rows_of_tile(x.dtype)
        last = (x.shape[2] - 1) // rows

        def index(b, layer, lengths):
            row = lax.div(lax.div(lengths[b], per_row), rows)
            return layer[0], b, 0, jnp.minimum(row, last), 0

        return pl.BlockSpec((None, None, kv_heads, rows, channels), index)

    specs = tuple(rows_around(x, 1 if n < 2 else page_size) for n, x in enumerate(stacks))
    swapped = tuple(
        jax.ShapeDtypeStruct((*x.shape[:2], kv_heads, x.shape[2], channels), x.dtype)
        for x in stacks
    )
    return Kernel(
        functools.partial(_append_kernel, page_size, slots),
        "append",
        (batch,),
        (*arrived[:2], *swapped),
        (new, new, *specs),
        swapped,
        specs,
        scalars=2,
        aliases={2 + n: n for n in range(len(stacks))},
        semantics=("parallel",),
        cost=pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=sum(
                2 * batch * kv_heads * rows_of_tile(x.dtype) * channels * x.dtype.itemsize
                for x in stacks
            ),
        ),
    )
