"""Choosing candidates by score: what to keep of what forcing, ties and short rows leave open."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def choose(
    scores: Float[Array, "*rows N"],
    candidates: Bool[Array, "*#rows N"],
    forced: Bool[Array, "*#rows N"],
    count: int,
) -> Int32[Array, "*rows count"]:
    """The `count` best candidates of each row.

    Forced ones come first, then higher scores, then lower indices. Rows with fewer
    candidates than `count` keep them all. Forcing only chooses among candidates. An infinite
    score counts as the largest finite one; the two zeros are equal.

    Returns:
      Indices in ascending order, then -1 where there were too few.
    """
    n = scores.shape[-1]
    # Infinities mark what is forced and what is no candidate; a score that is itself infinite
    # must do neither. `top_k` puts the lower index first among equals.
    largest = jnp.finfo(jnp.float32).max
    scores = jnp.clip(scores.astype(jnp.float32), -largest, largest)
    scores = jnp.where(scores == 0, 0.0, scores)  # some sorts put -0 below +0
    scores = jnp.where(candidates, jnp.where(forced, jnp.inf, scores), -jnp.inf)
    found, index = jax.lax.top_k(scores, min(count, n))
    kept = jnp.sort(jnp.where(found > -jnp.inf, index, n), axis=-1)
    kept = jnp.where(kept < n, kept, -1)
    widths = [(0, 0)] * (kept.ndim - 1) + [(0, max(count - n, 0))]
    return jnp.pad(kept, widths, constant_values=-1)


def select_pages(
    scores: Float[Array, "B N P"],
    lengths: Int32[Array, " B"],
    *,
    page_size: int,
    pages: int,
    force_first: bool = True,
    force_current: bool = True,
) -> Int32[Array, "B N K"]:
    """The pages each head reads, given their scores; `choose` says which are the best.

    Args:
      scores: upper bounds q.k of each page (`ratjax_kernels.page_scores`).
      lengths: valid tokens; the current page is the one that holds the last of them, and those
        behind it are no candidates.
      page_size: tokens a page.
      pages: K, the pages to keep, forced ones included.
      force_first: always keep page 0.
      force_current: always keep the current page.

    Returns:
      Page indices in ascending order, -1 where the context has fewer pages than K.
    """
    page = jnp.arange(scores.shape[-1])
    current = ((lengths - 1) // page_size)[:, None, None]
    forced = ((page == 0) & force_first) | ((page == current) & force_current)
    return choose(scores, page <= current, forced, pages)
