"""Softmax attention over masked scores, in float32: the piece all attention operations share.

Query heads are grouped by the key/value head they read: [B, T, H, D] becomes [B, T, G, R, D] with
H = G R. Products of two narrow numbers are exact in float32, so only accumulation needs care.
"""

import jax
import jax.numpy as jnp
from jax import lax

_EXACT = (
    lax.Precision.HIGHEST
)  # float32 operands stay float32 on devices with narrower matrix units


def group_heads(q, kv_heads: int):
    """[B, T, H, D] -> [B, T, G, R, D]."""
    batch, length, heads, channels = q.shape
    return q.reshape(batch, length, kv_heads, heads // kv_heads, channels)


def scores_of(equation: str, q, k):
    """q . k / sqrt(D) in float32; `equation` is einsum's, D the last axis of `q`."""
    q, k = _same_dtype(q, k)
    products = jnp.einsum(equation, q, k, precision=_EXACT, preferred_element_type=jnp.float32)
    return products * (q.shape[-1] ** -0.5)


def masked_softmax(scores, visible):
    """Softmax over the last axis among `visible` entries; a row that sees nothing is all zero.

    Masked scores may hold anything, NaN included; masked probabilities are exactly zero.
    """
    scores = jnp.where(visible, scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def weigh(equation: str, probabilities, v):
    """The average of `v`, accumulated in float32; probabilities are rounded to `v`'s dtype."""
    return jnp.einsum(
        equation,
        probabilities.astype(v.dtype),
        v,
        precision=_EXACT,
        preferred_element_type=jnp.float32,
    )


def _same_dtype(a, b):
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)


def map_chunks(body, count: int):
    """`body(i)` for i in range(count), stacked, one at a time and recomputed in the backward pass.

    What `body` makes on the way (scores, masks) never exists for two chunks at once.
    """
    body = jax.checkpoint(body)
    if count == 1:
        return body(jnp.int32(0))[None]
    return lax.map(body, jnp.arange(count, dtype=jnp.int32))


# Scores of one chunk: large enough to keep the device busy, small beside the activations.
_CHUNK_SCORES = 2**25


def chunk_of_queries(scores_per_query: int, length: int) -> int:
    """How many queries to treat at once: a power of two from 16 up, no more than cover `length`."""
    chunk = 16
    while chunk < length and 2 * chunk * scores_per_query <= _CHUNK_SCORES:
        chunk *= 2
    return min(chunk, length)
