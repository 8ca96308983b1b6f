"""Keys and values repeated for every query head, everything in float32."""

import jax.numpy as jnp
from jax import lax

from ratjax_kernels.layers import at_layer


def dense_decode(q, k, v, lengths, mask, layer):
    """See `ratjax_kernels.dense_decode.api`."""
    k, v = at_layer(layer, k, v)
    group = q.shape[2] // k.shape[2]
    filled = jnp.arange(k.shape[1]) < lengths[:, None]
    filled = filled if mask is None else filled & mask
    k, v = (
        jnp.repeat(jnp.where(filled[:, :, None, None], x, 0).astype(jnp.float32), group, axis=2)
        for x in (k, v)
    )
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bthd,bshd->bths", q.astype(jnp.float32), k, precision=exact)
    scores = scores * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True)) * filled[:, None, None, :]
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bths,bshd->bthd", weights, v, precision=exact).astype(q.dtype)
