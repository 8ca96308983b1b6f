"""The rule as a [T, T] mask over dense attention, in float32."""

import jax.numpy as jnp
from jax import lax


def strided_prefill(q, k, v, dilation, local, initial):
    """See `ratjax_kernels.strided_prefill.api`."""
    group = q.shape[2] // k.shape[2]
    i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(q.shape[1])[None, :]
    strided = (j + 1) % dilation == 0 if dilation > 0 else False
    visible = (j <= i) & (strided | (i - j <= local) | (j < initial))
    k, v = (jnp.repeat(x.astype(jnp.float32), group, axis=2) for x in (k, v))
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bthd,bshd->bhts", q.astype(jnp.float32), k, precision=exact)
    scores = jnp.where(visible, scores * q.shape[-1] ** -0.5, -1e30)
    weights = visible * jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhts,bshd->bthd", weights, v, precision=exact).astype(q.dtype)
