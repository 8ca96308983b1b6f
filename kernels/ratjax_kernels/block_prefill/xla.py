"""Masked dense attention, a chunk of queries at a time.

XLA has no ragged gather that keeps matrix units busy: gathering K blocks for every single query
moves K * block_size keys per query through memory and does one multiply with each. At the budgets
of use (a quarter to a sixteenth of the keys) contracting a chunk of queries with all keys so far
and masking is plain matrix work, and its memory is a chunk's scores.
"""

import jax.numpy as jnp
from jax import lax

from ratjax_kernels.masked_attention import (
    chunk_of_queries,
    group_heads,
    map_chunks,
    masked_softmax,
    scores_of,
    weigh,
)
from ratjax_kernels.selection import choose


def block_means(k, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    batch, length, *rest = k.shape
    blocks = -(-length // block_size)
    k = jnp.pad(k.astype(jnp.float32), [(0, 0), (0, blocks * block_size - length), (0, 0), (0, 0)])
    sums = k.reshape(batch, blocks, block_size, *rest).sum(axis=2)
    starts = jnp.arange(blocks) * block_size
    return sums / jnp.minimum(length - starts, block_size)[:, None, None]


def block_select(q, means, block_size, blocks, force_first):
    """See `ratjax_kernels.block_prefill.api`."""
    batch, length, heads, _ = q.shape
    count = means.shape[1]
    chunk = chunk_of_queries(batch * heads * count, length)
    chunks = -(-length // chunk)
    q = jnp.pad(q, [(0, 0), (0, chunks * chunk - length), (0, 0), (0, 0)])
    block = jnp.arange(count, dtype=jnp.int32)

    def select(index):
        at = index * chunk + jnp.arange(chunk, dtype=jnp.int32)
        q_chunk = lax.dynamic_slice_in_dim(q, index * chunk, chunk, axis=1)
        q_chunk = group_heads(q_chunk.astype(jnp.float32), means.shape[2])
        exact = lax.Precision.HIGHEST  # which blocks are best is a matter of float32 on any device
        scores = jnp.einsum("btgrd,bpgd->bgrtp", q_chunk, means, precision=exact)
        current = (at // block_size)[:, None]
        forced = ((block == 0) & force_first) | (block == current)
        scores = scores.reshape(batch, heads, chunk, count)
        return choose(scores, block <= current, forced, blocks)

    q, means = lax.stop_gradient((q, means))
    ids = jnp.moveaxis(map_chunks(select, chunks), 0, 2)  # [B, H, chunks, chunk, K]
    return ids.reshape(batch, heads, chunks * chunk, blocks)[:, :, :length]


def block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    batch, length, heads, channels = q.shape
    kv_heads = k.shape[2]
    blocks = -(-length // block_size)
    padded = blocks * block_size
    chunk = chunk_of_queries(batch * heads * padded, length)
    chunks = -(-length // chunk)
    block_ids = jnp.moveaxis(block_ids, 1, 2)  # [B, T, H, K], time where q has it
    read = (block_ids[..., None] == jnp.arange(blocks)).any(axis=(1, 2, 3))  # [B, P]
    read = jnp.repeat(read, block_size, axis=1)[:, :, None, None]

    def pad(x, to, fill=0):
        widths = [(0, 0), (0, to - x.shape[1]), (0, 0), (0, 0)]
        return jnp.pad(x, widths, constant_values=fill)

    k, v = (jnp.where(read, pad(x, padded), 0) for x in (k, v))
    q, block_ids = pad(q, chunks * chunk), pad(block_ids, chunks * chunk, -1)
    key_at = jnp.arange(padded, dtype=jnp.int32)

    def attend(index):
        start = index * chunk
        q_chunk = group_heads(lax.dynamic_slice_in_dim(q, start, chunk, axis=1), kv_heads)
        ids = lax.dynamic_slice_in_dim(block_ids, start, chunk, axis=1)
        ids = ids.reshape(*q_chunk.shape[:4], ids.shape[-1])
        listed = (ids[..., None] == jnp.arange(blocks)).any(axis=-2)  # [B, chunk, G, R, P]
        listed = jnp.repeat(listed, block_size, axis=-1)
        causal = key_at <= (start + jnp.arange(chunk, dtype=jnp.int32))[:, None]
        scores = scores_of("btgrd,bsgd->btgrs", q_chunk, k)
        weights = masked_softmax(scores, listed & causal[None, :, None, None, :])
        return weigh("btgrs,bsgd->btgrd", weights, v).astype(q.dtype)

    out = jnp.moveaxis(map_chunks(attend, chunks), 0, 1)
    return out.reshape(batch, chunks * chunk, heads, channels)[:, :length]
