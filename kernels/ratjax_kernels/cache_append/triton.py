"""`append` as one launch that writes in place."""

import math

import jax

from ratjax_kernels.cache_append import batched, triton_kernels
from ratjax_kernels.triton_call import device_problem, launch

_CHANNELS = 512


def limits_of_append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(k, v, *(bounds or ()))


def append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.cache_append.api`."""
    return batched.append(_launch, k, v, lengths, k_new, v_new, bounds, page_size, layer)


def _launch(layer, lengths, k_new, v_new, stacks, page_size):
    batch, slots, kv_heads, channels = stacks[0].shape[1:]
    paged = len(stacks) == 4
    inputs = (*stacks, *([lengths] * (4 - len(stacks))))
    width = kv_heads * channels
    out = launch(
        triton_kernels.append_kernel,
        (k_new, v_new, lengths, layer, *inputs),
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs),
        grid=(math.ceil(width / _CHANNELS), batch),
        aliases={4 + i: i for i in range(len(stacks))},
        BATCH=batch,
        SLOTS=slots,
        P=stacks[2].shape[2] if paged else 1,
        PAGE=page_size,
        WIDTH=width,
        N=_CHANNELS,
        PAGED=paged,
        num_warps=4,
    )
    return out[: len(stacks)]
