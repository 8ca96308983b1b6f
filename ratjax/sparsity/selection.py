"""Choosing candidates by score: the step that every query-aware pattern shares.

Quest, MoBA and SnapKV differ in what a candidate is and how it is scored; forcing, ties,
short contexts and the random selector are the same here, so that no difference between
methods, or between backbones, can come from them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from ratjax.errors import ConfigError, check_choice
from ratjax.shapes import PromptKeys

SELECTORS = ("original", "random")


def choose(
    scores: Float[Array, "*rows N"],
    candidates: Bool[Array, "*#rows N"],
    forced: Bool[Array, "*#rows N"],
    count: int,
) -> Int32[Array, "*rows count"]:
    """The `count` best candidates of each row.

    Forced ones come first, then higher scores, then lower indices. Rows with fewer
    candidates than `count` keep them all. Forcing only chooses among candidates.

    Returns:
      Indices in ascending order, then -1 where there were too few.
    """
    n = scores.shape[-1]
    # Infinities mark what is forced and what is no candidate; a score that is itself infinite
    # must do neither. `top_k` puts the lower index first among equals.
    largest = jnp.finfo(jnp.float32).max
    scores = jnp.clip(scores.astype(jnp.float32), -largest, largest)
    scores = jnp.where(candidates, jnp.where(forced, jnp.inf, scores), -jnp.inf)
    found, index = jax.lax.top_k(scores, min(count, n))
    kept = jnp.sort(jnp.where(found > -jnp.inf, index, n), axis=-1)
    kept = jnp.where(kept < n, kept, -1)
    widths = [(0, 0)] * (kept.ndim - 1) + [(0, max(count - n, 0))]
    return jnp.pad(kept, widths, constant_values=-1)


def as_mask(indices: Int32[Array, "*rows count"], n: int) -> Bool[Array, "*rows {n}"]:
    """The chosen indices (-1 = none) as a mask over n candidates."""
    return jax.nn.one_hot(indices, n, dtype=jnp.bool_).any(axis=-2)


def random_scores(keys: PromptKeys, shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
    """Scores that make `choose` draw uniformly among candidates (the paper's I_rand, H2).

    Each prompt draws from its own key, so that a draw does not depend on the batch.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def fold_in(keys: PromptKeys | None, data: Int32[Array, "*#B"] | int) -> PromptKeys | None:
    """A new key a prompt, for a layer or a step; None stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(data, keys.shape))


def share_over_group(scores: Float[Array, "B H ..."], kv_heads: int) -> Float[Array, "B H ..."]:
    """Each score replaced by its mean over the query heads of its key/value head.

    For selections that a whole group of heads makes together.
    """
    batch, heads, *rest = scores.shape
    grouped = scores.reshape(batch, kv_heads, heads // kv_heads, *rest)
    mean = jnp.broadcast_to(grouped.mean(axis=2, keepdims=True), grouped.shape)
    return mean.reshape(scores.shape)


def check_selection(name: str, per: str, selector: str) -> None:
    """Raises `ConfigError` for an unknown `per` or `selector` field of pattern `name`."""
    check_choice(f"{name}.per", per, ("query_head", "kv_head"))
    check_choice(f"{name}.selector", selector, SELECTORS)


def check_forced(name: str, field: str, count: int, forced: int) -> None:
    """Raises `ConfigError` when more is forced than is kept."""
    if count < max(forced, 1):
        raise ConfigError(
            f"{name}.{field}",
            count,
            f"keeps fewer than the {forced} that are always kept; raise it or force fewer",
        )
