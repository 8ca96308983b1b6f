"""All queries against all keys at once, in float32."""

import jax.numpy as jnp
from jax import lax


def window_scores(q, k, lengths):
    """See `ratjax_kernels.window_scores.api`."""
    batch, window, heads, channels = q.shape
    slots, kv_heads = k.shape[1:3]
    query_at = lengths[:, None] - window + jnp.arange(window)  # [B, W]
    visible = (query_at[..., None] >= jnp.arange(slots))[:, None]  # [B, 1, W, S]
    k = jnp.where((jnp.arange(slots) < lengths[:, None])[..., None, None], k, 0)
    k = jnp.repeat(k.astype(jnp.float32), heads // kv_heads, axis=2)
    scores = jnp.einsum(
        "bwhd,bshd->bhws", q.astype(jnp.float32), k, precision=lax.Precision.HIGHEST
    )
    scores = jnp.where(visible, scores * channels**-0.5, -1e30)
    weights = visible * jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    votes = (weights / jnp.where(total == 0, 1.0, total)).sum(axis=2)
    return votes.reshape(batch, kv_heads, -1, slots).mean(axis=2)
