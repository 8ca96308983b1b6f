"""Bounds by one reduction, scores by two contractions, attention over gathered pages."""

import jax.numpy as jnp
from jax import lax

from ratjax_kernels.layers import at_layer
from ratjax_kernels.masked_attention import group_heads, masked_softmax, scores_of, weigh
from ratjax_kernels.selection import select_pages


def page_bounds(k, lengths, page_size):
    """See `ratjax_kernels.paged_decode.api`."""
    batch, length, *rest = k.shape
    pages = -(-length // page_size)
    k = jnp.pad(k, [(0, 0), (0, pages * page_size - length), (0, 0), (0, 0)])
    filled = jnp.arange(pages * page_size, dtype=jnp.int32) < lengths[:, None]
    filled = filled.reshape(batch, pages, page_size, 1, 1)
    k = k.reshape(batch, pages, page_size, *rest)
    inf = jnp.array(jnp.inf, k.dtype)
    return jnp.where(filled, k, inf).min(axis=2), jnp.where(filled, k, -inf).max(axis=2)


def page_scores(q, k_min, k_max, layer):
    """See `ratjax_kernels.paged_decode.api`.

    Where q is positive its product with the greatest key is the larger one, elsewhere that with the
    least: so the sum of maxima is two plain contractions, of q's positive and negative parts.
    """
    k_min, k_max = at_layer(layer, k_min, k_max)
    empty = k_min[..., :1] > k_max[..., :1]
    k_min, k_max = (jnp.where(empty, 0, x) for x in (k_min, k_max))
    q = group_heads(q, k_min.shape[2])[:, 0]

    def contract(q, k):
        return jnp.einsum(
            "bgrd,bpgd->bgrp",
            q.astype(jnp.float32),
            k.astype(jnp.float32),
            precision=lax.Precision.HIGHEST,
        )

    scores = contract(jnp.maximum(q, 0), k_max) + contract(jnp.minimum(q, 0), k_min)
    scores = jnp.where(empty[..., 0].swapaxes(1, 2)[:, :, None, :], -jnp.inf, scores)
    batch, kv_heads, group, pages = scores.shape
    return scores.reshape(batch, kv_heads * group, pages)


def paged_decode(q, k, v, lengths, page_ids, page_size, layer):
    """See `ratjax_kernels.paged_decode.api`."""
    k, v = at_layer(layer, k, v)
    batch, length, kv_heads, _ = k.shape
    # One list a query head is [B, G, R, K]; one a key/value head is [B, G, 1, K] and read once.
    page_ids = page_ids.reshape(batch, kv_heads, -1, page_ids.shape[2])
    slots = page_ids[..., None] * page_size + jnp.arange(page_size, dtype=jnp.int32)
    filled = jnp.minimum(lengths, length)[:, None, None, None, None]
    usable = (page_ids >= 0)[..., None] & (slots < filled)
    flat = (*page_ids.shape[:3], -1)
    slots, usable = slots.reshape(flat), usable.reshape(flat)
    slots = jnp.clip(slots, 0, length - 1)
    rows = jnp.arange(batch)[:, None, None, None]
    columns = jnp.arange(kv_heads)[None, :, None, None]
    k, v = k[rows, slots, columns], v[rows, slots, columns]  # [B, G, lists, K page_size, D]
    v = jnp.where(usable[..., None], v, 0)
    grouped = group_heads(q, kv_heads)[:, 0]
    if page_ids.shape[2] == grouped.shape[2]:
        scores = scores_of("bgrd,bgrsd->bgrs", grouped, k)
        out = weigh("bgrs,bgrsd->bgrd", masked_softmax(scores, usable), v)
    else:
        scores = scores_of("bgrd,bgsd->bgrs", grouped, k[:, :, 0])
        out = weigh("bgrs,bgsd->bgrd", masked_softmax(scores, usable), v[:, :, 0])
    return out.reshape(q.shape).astype(q.dtype)


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
