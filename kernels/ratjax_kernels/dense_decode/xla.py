"""Two contractions over the grouped heads; a key/value head is read once for all its queries."""

import jax.numpy as jnp

from ratjax_kernels.layers import at_layer
from ratjax_kernels.masked_attention import group_heads, masked_softmax, scores_of, weigh


def dense_decode(q, k, v, lengths, mask, layer):
    """See `ratjax_kernels.dense_decode.api`."""
    k, v = at_layer(layer, k, v)
    filled = jnp.arange(k.shape[1], dtype=jnp.int32) < lengths[:, None]
    filled = filled if mask is None else filled & mask
    scores = scores_of("btgrd,bsgd->btgrs", group_heads(q, k.shape[2]), k)
    weights = masked_softmax(scores, filled[:, None, None, None, :])
    v = jnp.where(filled[:, :, None, None], v, 0)  # zero times NaN would still be NaN
    return weigh("btgrs,bsgd->btgrd", weights, v).reshape(q.shape).astype(q.dtype)
