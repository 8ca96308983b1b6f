"""The whole [B, H, T, T] picture at once, in float32."""

import jax.numpy as jnp
from jax import lax


def block_means(k, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    k = k.astype(jnp.float32)
    starts = range(0, k.shape[1], block_size)
    return jnp.stack([k[:, s : s + block_size].mean(axis=1) for s in starts], axis=1)


def block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    at = jnp.arange(length)
    listed = (block_ids[..., None] == at // block_size).any(axis=3)  # [B, H, T, T]
    visible = listed & (at[None, :] <= at[:, None])
    read = listed.any(axis=(1, 2))[:, :, None, None]
    k, v = (jnp.repeat(jnp.where(read, x, 0).astype(jnp.float32), group, axis=2) for x in (k, v))
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bthd,bshd->bhts", q.astype(jnp.float32), k, precision=exact)
    scores = jnp.where(visible, scores * q.shape[-1] ** -0.5, -1e30)
    weights = visible * jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=exact).astype(q.dtype)
