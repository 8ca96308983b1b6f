"""`kept_positions` through the Triton kernels of `ratjax_kernels.compaction.triton_kernels`."""

import functools

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.compaction.triton_kernels import digits_kernel, write_kernel
from ratjax_kernels.triton_call import device_problem, launch, power_of_two

_LONGEST_CHUNK = 4096
_WARPS = 8


def limits_of_kept_positions(scores, lengths, window, capacity):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(scores)


def kept_positions(scores, lengths, window, capacity):
    """See `ratjax_kernels.compaction.api`."""
    return _launch(window, capacity)(scores, lengths)


@functools.cache
def _launch(window, capacity):
    @merge_vmap
    def run(scores, lengths):
        batch, kv_heads, slots = scores.shape
        rows = batch * kv_heads
        chunk = min(_LONGEST_CHUNK, power_of_two(slots, 128))
        chunks = -(-slots // chunk)
        constants = {
            "SLOTS": slots,
            "KV_HEADS": kv_heads,
            "WINDOW": window,
            "COUNT": min(capacity, slots),
            "CHUNK": chunk,
            "CHUNKS": chunks,
            "num_warps": _WARPS,
            "num_stages": 1,
        }
        shapes = ((rows, chunks, 256), (rows, 2), (rows, chunks))
        outputs = tuple(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes)
        # The first digit is counted before there is any state to read.
        state = (lengths, lengths, lengths)
        for shift in (24, 16, 8, 0):
            state = launch(
                digits_kernel,
                (scores, lengths, *state),
                outputs,
                grid=(rows * chunks,),
                SHIFT=shift,
                **constants,
            )
        return launch(
            write_kernel,
            (scores, lengths, *state),
            (jax.ShapeDtypeStruct((batch, kv_heads, capacity), jnp.int32),),
            grid=(rows * chunks,),
            CAPACITY=capacity,
            **constants,
        )[0]

    return run
