"""`window_scores` through the TPU kernel of `ratjax_kernels.window_scores.pallas_kernels`.

Keys are read with the heads before the slots, twice: 2 S G D numbers, 512 MiB for 32768 keys of 32
heads in bfloat16, 0.65 ms of a v5e's 0.82 TB/s. A tile of 2048 keys is 0.5 MiB, 0.64 us; about as
much goes into a step's overhead (0.35 us) and the exponentials of 64 rows together, beside it.
Tiles behind the prompt's end are neither read nor computed. These are estimates: nothing was timed
on a TPU.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.pallas_call import LANES, Kernel, dtype_problem
from ratjax_kernels.window_scores import pallas_kernels

# Keys of a tile, and the most scores of one, of which a few copies exist at once: 1 MiB each.
_KEYS, _SCORES = 2048, 2**18


def limits_of_window_scores(q, k, lengths):
    """See `ratjax_kernels.dispatch.Operation`."""
    return dtype_problem(q, k) or _kernel(*jax.eval_shape(_rows, q, k), q.shape[1]).problem()


@merge_vmap
def window_scores(q, k, lengths):
    """See `ratjax_kernels.window_scores.api`."""
    rows, keys = _rows(q, k)
    (out,) = _kernel(rows, keys, q.shape[1])(jnp.minimum(lengths, k.shape[1]), rows, keys)
    return out[:, :, 0]


def _rows(q, k):
    """[B, W, H, D] and [B, S, G, D] -> [B, G, R W, D] and [B, G, S, D]."""
    batch, window, heads, channels = q.shape
    q = q.reshape(batch, window, k.shape[2], heads // k.shape[2], channels)
    q = jnp.transpose(q, (0, 2, 3, 1, 4))
    return q.reshape(batch, k.shape[2], -1, channels), jnp.swapaxes(k, 1, 2)


def _kernel(q, k, window):
    batch, kv_heads, rows, channels = q.shape
    slots = k.shape[2]
    width = _KEYS
    while width > LANES and width * rows > _SCORES:
        width //= 2

    def tile(b, t, lengths):
        """Behind the prompt's end: the tile that is there already."""
        return jnp.minimum(t, lax.div(jnp.maximum(lengths[b], 1) - 1, width))

    return Kernel(
        functools.partial(pallas_kernels.votes_kernel, window, rows // window),
        "window_scores",
        (batch, kv_heads, 2, -(-slots // width)),
        (q, k),
        (
            pl.BlockSpec((None, None, rows, channels), lambda b, g, walk, t, *_: (b, g, 0, 0)),
            pl.BlockSpec(
                (None, None, width, channels),
                lambda b, g, walk, t, lengths: (b, g, tile(b, t, lengths), 0),
            ),
        ),
        (jax.ShapeDtypeStruct((batch, kv_heads, 1, slots), jnp.float32),),
        # The first walk writes nothing: its block is the one that the second begins with.
        (pl.BlockSpec((None, None, 1, width), lambda b, g, walk, t, *_: (b, g, 0, walk * t)),),
        scratch=(pltpu.VMEM((rows, 1), jnp.float32),) * 2,
        scalars=1,
        semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        values=4 * rows * width * 4,
        cost=pl.CostEstimate(
            flops=4 * math.prod(q.shape) * slots,
            transcendentals=2 * batch * kv_heads * rows * slots,
            bytes_accessed=2 * math.prod(k.shape) * k.dtype.itemsize,
        ),
    )
