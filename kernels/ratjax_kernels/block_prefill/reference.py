"""The whole [B, H, T, T] picture at once, in float32."""

import jax.numpy as jnp
from jax import lax

_EXACT = lax.Precision.HIGHEST


def block_means(k, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    k = k.astype(jnp.float32)
    starts = range(0, k.shape[1], block_size)
    return jnp.stack([k[:, s : s + block_size].mean(axis=1) for s in starts], axis=1)


def block_select(q, means, block_size, blocks, force_first):
    """See `ratjax_kernels.block_prefill.api`."""
    length, group, count = q.shape[1], q.shape[2] // means.shape[2], means.shape[1]
    means = jnp.repeat(means, group, axis=2)
    scores = jnp.einsum("bthd,bphd->bhtp", q.astype(jnp.float32), means, precision=_EXACT)
    block, current = jnp.arange(count), (jnp.arange(length) // block_size)[:, None]
    forced = (block == current) | (force_first & (block == 0) & (current >= 0))
    keys = jnp.broadcast_arrays(jnp.where(scores == 0, 0.0, -scores), ~forced, block > current)
    rank = jnp.lexsort(keys)  # stable; the last key counts most
    chosen = jnp.pad(rank, [(0, 0)] * 3 + [(0, blocks)], constant_values=count)[..., :blocks]
    chosen = jnp.sort(jnp.where(chosen <= current, chosen, count), axis=-1)
    return jnp.where(chosen < count, chosen, -1).astype(jnp.int32)


def block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    at = jnp.arange(length)
    listed = (block_ids[..., None] == at // block_size).any(axis=3)  # [B, H, T, T]
    visible = listed & (at[None, :] <= at[:, None])
    read = listed.any(axis=(1, 2))[:, :, None, None]
    k, v = (jnp.repeat(jnp.where(read, x, 0).astype(jnp.float32), group, axis=2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q.astype(jnp.float32), k, precision=_EXACT)
    scores = jnp.where(visible, scores * q.shape[-1] ** -0.5, -1e30)
    weights = visible * jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=_EXACT).astype(q.dtype)
