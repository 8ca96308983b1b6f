"""SnapKV's vote on a TPU: two walks over the keys, because a probability needs its row's sum first.

All queries of the window and all query heads of a key/value head form the rows of one matrix, so a
key is read once a walk for all of them. The first walk leaves each row's maximum and sum in VMEM,
where the second finds them.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ratjax_kernels.dense_decode.pallas_tiles import product

_NOTHING = -1e30


def votes_kernel(window, group, lengths_ref, q_ref, k_ref, out_ref, top_ref, total_ref):
    """q [rows, D], row = head of the group * window + query; k [N, D]; out [1, N]."""
    rows, channels = q_ref.shape
    width = k_ref.shape[0]
    walk, tile = pl.program_id(2), pl.program_id(3)
    length, begin = lengths_ref[pl.program_id(0)], tile * width

    def scores():
        """[rows, N], and which of them count."""
        products = product(q_ref[...], k_ref[...], (((1,), (1,)), ((), ())))
        row = lax.broadcasted_iota(jnp.int32, (rows, width), 0)
        key = begin + lax.broadcasted_iota(jnp.int32, (rows, width), 1)
        query = length - window + lax.rem(row, window)
        seen = (key <= query) & (row < group * window)
        return jnp.where(seen, products * channels**-0.5, _NOTHING), seen

    @pl.when((walk == 0) & (tile == 0))
    def _():
        top_ref[...] = jnp.full(top_ref.shape, _NOTHING, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)

    @pl.when((walk == 0) & (begin < length))
    def _():
        score, seen = scores()
        top = top_ref[...]
        new = jnp.maximum(top, jnp.max(score, axis=1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(score - new), 0.0)
        total_ref[...] = total_ref[...] * jnp.exp(top - new) + weights.sum(axis=1, keepdims=True)
        top_ref[...] = new

    @pl.when((walk == 1) & (begin < length))
    def _():
        score, seen = scores()
        total = total_ref[...]
        share = 1.0 / (group * jnp.where(total == 0, 1.0, total))
        weights = jnp.where(seen, jnp.exp(score - top_ref[...]), 0.0) * share
        out_ref[...] = jnp.sum(weights, axis=0, keepdims=True)

    @pl.when((walk == 1) & (begin >= length))
    def _():
        out_ref[...] = jnp.zeros(out_ref.shape, jnp.float32)
