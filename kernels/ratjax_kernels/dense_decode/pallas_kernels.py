"""One query over the filled slots of a cache: several key/value heads a step, tile after tile."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ratjax_kernels.dense_decode import pallas_tiles
from ratjax_kernels.pallas_call import SUBLANES


def attend_kernel(layer_ref, lengths_ref, q_ref, k_ref, v_ref, *rest):
    """q and out [heads, R, D], k and v [heads, N, D], mask [1, N] where there is one; states."""
    *masks, out_ref, top_ref, total_ref, mean_ref = rest
    del layer_ref
    heads, queries, channels = q_ref.shape
    width = k_ref.shape[1]
    batch, tile = pl.program_id(0), pl.program_id(2)
    length, begin = lengths_ref[batch], tile * width
    states = (top_ref, total_ref, mean_ref)

    @pl.when(tile == 0)
    def _():
        for ref, x in zip(states, pallas_tiles.start(queries, channels), strict=True):
            ref[...] = jnp.broadcast_to(x, ref.shape)

    def attend(whole):
        """With `whole` every slot of the tile counts."""
        if whole:
            times = jnp.ones((queries, width), jnp.float32)
        else:
            column = lax.broadcasted_iota(jnp.int32, (queries, width), 1)
            times = (begin + column < length).astype(jnp.float32)
            row = lax.broadcasted_iota(jnp.int32, (width, channels), 0)
            filled = begin + row < length
            for mask_ref in masks:
                mask = jnp.broadcast_to(mask_ref[...], (SUBLANES, width))
                times = jnp.where(mask[:1] > 0, times, 0.0)
                filled &= jnp.transpose(mask)[:, :1] > 0
        for head in range(heads):
            v = v_ref[head]
            if not whole:
                v = jnp.where(filled, v.astype(jnp.float32), 0.0).astype(v.dtype)
            state = tuple(ref[head] for ref in states)
            state = pallas_tiles.step(q_ref[head], k_ref[head], v, times, state, channels**-0.5)
            for ref, x in zip(states, state, strict=True):
                ref[head] = x

    some, whole = begin < length, begin + width <= length
    if masks:
        pl.when(some)(lambda: attend(whole=False))
    else:
        pl.when(whole)(lambda: attend(whole=True))
        pl.when(some & jnp.logical_not(whole))(lambda: attend(whole=False))

    @pl.when(tile == pl.num_programs(2) - 1)
    def _():
        for head in range(heads):
            state = tuple(ref[head] for ref in states)
            out_ref[head] = pallas_tiles.finish(state).astype(out_ref.dtype)
