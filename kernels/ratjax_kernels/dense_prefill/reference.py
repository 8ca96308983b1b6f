"""All [B, H, T, T] scores at once, in float32."""

import jax.numpy as jnp
from jax import lax


def dense_prefill(q, k, v):
    """See `ratjax_kernels.dense_prefill.api`."""
    at, group = jnp.arange(q.shape[1]), q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), group, axis=2) for x in (k, v))
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bthd,bshd->bhts", q.astype(jnp.float32), k, precision=exact)
    scores = jnp.where(at <= at[:, None], scores * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=exact).astype(q.dtype)
