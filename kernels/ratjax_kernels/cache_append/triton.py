"""`append` as one launch that writes in place."""

import math

import jax

from ratjax_kernels.cache_append import triton_kernels, xla
from ratjax_kernels.layers import as_stack
from ratjax_kernels.triton_call import device_problem, launch

_CHANNELS = 512


def limits_of_append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(k, v, *(bounds or ()))


def append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.cache_append.api`."""
    arrays = (k, v, *(bounds or ()))

    @jax.custom_batching.custom_vmap
    def run(layer, lengths, k_new, v_new, *stacks):
        return _launch(layer, lengths, k_new, v_new, stacks, page_size)

    @run.def_vmap
    def rule(size, batched, *args):
        # Batched layers cannot be told apart by one number: scatters can address them.
        def one(layer, lengths, k_new, v_new, k, v, *bounds):
            return xla.append(k, v, lengths, k_new, v_new, bounds or None, page_size, layer)

        axes = [0 if is_batched else None for is_batched in batched]
        return jax.vmap(one, axes)(*args), (True,) * len(arrays)

    stack, *stacks = as_stack(layer, *arrays)
    out = run(stack, lengths, k_new.astype(k.dtype), v_new.astype(v.dtype), *stacks)
    return tuple(out if layer is not None else (x[0] for x in out))


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
