"""`dense_decode` through the TPU kernel of `ratjax_kernels.dense_decode.pallas_kernels`.

The cache is read with the heads before the slots, as all decode kernels here read it (see
`ratjax_kernels.paged_decode.pallas_tpu`). A step reads 1 MiB of keys and as much of values, in
pieces of 128 KiB; tiles behind the last filled slot are neither read nor computed. Each byte is
read once, and 2 MiB take about 2.5 us of a v5e's 0.82 TB/s and 0.85 us of a v5p's 2.46 TB/s, beside
about 0.35 us that a step costs. These are estimates: nothing was timed on a TPU.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.dense_decode import pallas_kernels
from ratjax_kernels.layers import as_stack, merge_layers
from ratjax_kernels.pallas_call import (
    LANES,
    SUBLANES,
    Kernel,
    dtype_problem,
    largest_divisor,
    pad_to,
)

# Heads and slots of a step, and the bytes of its keys.
_HEADS, _SLOTS, _BYTES = 8, 512, 2**20


def limits_of_dense_decode(q, k, v, lengths, mask, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    _, k, v = jax.eval_shape(as_stack, layer, k, v)
    return dtype_problem(q, k, v) or _kernel(q, k, v, mask is not None).problem()


def dense_decode(q, k, v, lengths, mask, layer):
    """See `ratjax_kernels.dense_decode.api`."""
    layer, k, v = as_stack(layer, k, v)
    masks = () if mask is None else (mask[:, None].astype(jnp.float32),)
    return _attend(layer, k, v, q, lengths, *masks)


@merge_layers(stacked=2)
def _attend(layer, k, v, q, lengths, *masks):
    batch, _, heads, channels = q.shape
    kv_heads = k.shape[3]
    kernel = _kernel(q, k, v, bool(masks))
    grouped = q.reshape(batch, kv_heads, -1, channels)
    grouped = pad_to(grouped, 2, kernel.inputs[0].shape[2])
    lengths = jnp.minimum(lengths, k.shape[2])  # a full sequence has dropped tokens
    k, v = (jnp.swapaxes(x, 2, 3) for x in (k, v))
    (out,) = kernel(layer.reshape(1), lengths, grouped, k, v, *masks)
    return out[:, :, : heads // kv_heads].reshape(q.shape)


def _kernel(q, k, v, masked):
    batch, _, heads, channels = q.shape
    layers, _, slots, kv_heads, _ = k.shape
    queries = -(-(heads // kv_heads) // SUBLANES) * SUBLANES
    # Two cores of one chip share the parallel axes.
    block = largest_divisor(kv_heads, _HEADS if batch > 1 else min(_HEADS, max(kv_heads // 2, 1)))
    row = block * -(-channels // LANES) * LANES * max(k.dtype.itemsize, v.dtype.itemsize)
    width = _SLOTS
    while width > LANES and width * row > _BYTES:
        width //= 2

    def tile(b, t, lengths):
        """Behind the last filled slot: the tile that is there already."""
        last = jax.lax.div(jnp.maximum(lengths[b], 1) - 1, width)
        return jnp.minimum(t, last)

    queries_spec = pl.BlockSpec((None, block, queries, channels), lambda b, g, t, *_: (b, g, 0, 0))
    keys_spec = pl.BlockSpec(
        (None, None, block, width, channels),
        lambda b, g, t, layer, lengths: (layer[0], b, g, tile(b, t, lengths), 0),
    )
    mask_spec = pl.BlockSpec(
        (None, 1, width), lambda b, g, t, layer, lengths: (b, 0, tile(b, t, lengths))
    )
    grouped = jax.ShapeDtypeStruct((batch, kv_heads, queries, channels), q.dtype)
    cache = tuple(
        jax.ShapeDtypeStruct((layers, batch, kv_heads, slots, channels), x.dtype) for x in (k, v)
    )
    mask = (jax.ShapeDtypeStruct((batch, 1, slots), jnp.float32),) if masked else ()
    return Kernel(
        pallas_kernels.attend_kernel,
        "dense_decode",
        (batch, kv_heads // block, -(-slots // width)),
        (grouped, *cache, *mask),
        (queries_spec, keys_spec, keys_spec, *([mask_spec] * masked)),
        (grouped,),
        (queries_spec,),
        scratch=(
            pltpu.VMEM((block, queries, 1), jnp.float32),
            pltpu.VMEM((block, queries, 1), jnp.float32),
            pltpu.VMEM((block, queries, channels), jnp.float32),
        ),
        scalars=2,
        semantics=("parallel", "parallel", "arbitrary"),
        cost=pl.CostEstimate(
            flops=4 * batch * heads * slots * channels,
            transcendentals=batch * heads * slots,
            bytes_accessed=batch
            * slots
            * kv_heads
            * channels
            * (k.dtype.itemsize + v.dtype.itemsize),
        ),
    )
