"""Straight from the definitions, with every page looked at and masked."""

import jax.numpy as jnp
from jax import lax

from ratjax_kernels.layers import at_layer
from ratjax_kernels.selection import select_pages


def page_bounds(k, lengths, page_size):
    """See `ratjax_kernels.paged_decode.api`."""
    length = k.shape[1]
    filled = (jnp.arange(length) < lengths[:, None])[:, :, None, None]
    low = jnp.where(filled, k, jnp.array(jnp.inf, k.dtype))
    high = jnp.where(filled, k, jnp.array(-jnp.inf, k.dtype))
    starts = range(0, length, page_size)
    k_min = [low[:, s : s + page_size].min(axis=1) for s in starts]
    k_max = [high[:, s : s + page_size].max(axis=1) for s in starts]
    return jnp.stack(k_min, axis=1), jnp.stack(k_max, axis=1)


def page_scores(q, k_min, k_max, layer):
    """See `ratjax_kernels.paged_decode.api`."""
    k_min, k_max = at_layer(layer, k_min, k_max)
    group = q.shape[2] // k_min.shape[2]
    low, high = (jnp.repeat(x.astype(jnp.float32), group, axis=2) for x in (k_min, k_max))
    empty = (low > high).any(axis=-1)
    low, high = (jnp.where(empty[..., None], 0, x) for x in (low, high))
    q = q.astype(jnp.float32)
    scores = jnp.maximum(q * low, q * high).sum(axis=-1)
    return jnp.where(empty, -jnp.inf, scores).swapaxes(1, 2)


def paged_decode(q, k, v, lengths, page_ids, page_size, layer):
    """See `ratjax_kernels.paged_decode.api`."""
    k, v = at_layer(layer, k, v)
    heads, length = q.shape[2], k.shape[1]
    group = heads // k.shape[2]
    if page_ids.shape[1] != heads:
        page_ids = jnp.repeat(page_ids, group, axis=1)
    slots = jnp.arange(length)
    times_listed = (page_ids[..., None] == slots // page_size).sum(axis=2)
    count = jnp.where(slots < lengths[:, None, None], times_listed, 0)  # [B, H, S]
    k, v = (jnp.repeat(x.astype(jnp.float32), group, axis=2).swapaxes(1, 2) for x in (k, v))
    read = (count > 0)[..., None]
    k, v = jnp.where(read, k, 0), jnp.where(read, v, 0)
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bhd,bhsd->bhs", q[:, 0].astype(jnp.float32), k, precision=exact)
    scores = jnp.where(count > 0, scores * q.shape[-1] ** -0.5, -1e30)
    weights = count * jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    out = jnp.einsum("bhs,bhsd->bhd", weights, v, precision=exact)
    return out[:, None].astype(q.dtype)


def quest_decode(
    q, k, v, lengths, k_min, k_max, page_size, pages, force_first, force_current, layer
):
    """See `ratjax_kernels.paged_decode.api`."""
    scores = page_scores(q, k_min, k_max, layer)
    ids = select_pages(
        scores, lengths, page_size=page_size, pages=pages,
        force_first=force_first, force_current=force_current,
    )  # fmt: skip
    return paged_decode(q, k, v, lengths, ids, page_size, layer), ids
