"""One key/value head at a time where the scores of all would be too large to hold."""

import jax.numpy as jnp
from jax import lax

from ratjax_kernels.masked_attention import group_heads, masked_softmax, scores_of

_HELD_SCORES = 2**26  # float32 numbers: 256 MiB


def window_scores(q, k, lengths):
    """See `ratjax_kernels.window_scores.api`."""
    batch, window, heads, _ = q.shape
    slots, kv_heads = k.shape[1:3]
    query_at = lengths[:, None] - window + jnp.arange(window, dtype=jnp.int32)
    visible = query_at[:, None, :, None] >= jnp.arange(slots, dtype=jnp.int32)  # [B, 1, W, S]

    def one_head(grouped):
        q, k = grouped  # [B, W, R, D], [B, S, D]
        weights = masked_softmax(scores_of("bwrd,bsd->brws", q, k), visible)
        return weights.sum(axis=2).mean(axis=1)

    by_head = jnp.moveaxis(group_heads(q, kv_heads), 2, 0), jnp.moveaxis(k, 2, 0)
    per_head = batch * (heads // kv_heads) * window * slots
    at_once = max(1, min(kv_heads, _HELD_SCORES // max(per_head, 1)))
    return jnp.moveaxis(lax.map(one_head, by_head, batch_size=at_once), 0, 1)
