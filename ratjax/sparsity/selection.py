"""Choosing candidates by score: the step that every query-aware pattern shares.

Quest, MoBA and SnapKV differ in what a candidate is and how it is scored; forcing, ties,
short contexts and the random selector are the same here, so that no difference between
methods, or between backbones, can come from them. `choose` says which candidates are best.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ratjax.errors import ConfigError, check_choice
from ratjax.shapes import PromptKeys
from ratjax_kernels.selection import choose

SELECTORS = ("original", "random")


def as_mask(indices: Int32[Array, "*rows count"], n: int) -> Bool[Array, "*rows {n}"]:
    """The chosen indices (-1 = none) as a mask over n candidates."""
    return jax.nn.one_hot(indices, n, dtype=jnp.bool_).any(axis=-2)


def random_scores(keys: PromptKeys, shape: tuple[int, ...]) -> Float[Array, "B *shape"]:
    """Scores that make `choose` draw uniformly among candidates (the paper's I_rand, H2).

    Each prompt, head and query draws from a key of its own, and the first candidates' draws are the
    same however many there are: a draw depends neither on the batch nor on its padding.

    Args:
      keys: one a prompt.
      shape: of one prompt's scores, heads first, candidates last. Where heads are shared out over
        devices, those of this one, which gets its own of all heads' draws.
    """
    shared_out = "tensor" in jax.sharding.get_abstract_mesh().axis_names
    first = shape[0] * jax.lax.axis_index("tensor") if shared_out else 0
    indices = [first + jnp.arange(shape[0]), *map(jnp.arange, shape[1:-1])]

    def draw(key, indices):
        if not indices:
            return jax.random.uniform(key, shape[-1:])
        return jax.vmap(lambda i: draw(jax.random.fold_in(key, i), indices[1:]))(indices[0])

    return jax.vmap(lambda key: draw(key, indices))(keys)


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


def steer(
    scores: Float32[Array, "B N P"],
    places: Int32[Array, "B _"],
    golden: str,
) -> Float32[Array, "B N P"]:
    """Scores under which `choose` takes the candidates at `places` first, or last.

    An intervention on the selection: does an answer need what it is copied from to be selected?

    Args:
      scores: of P candidates.
      places: candidates of each prompt; -1 for none.
      golden: "in": before all that are not forced. "out": behind all others.
    """
    chosen = as_mask(places, scores.shape[-1])[:, None]
    return jnp.where(chosen, jnp.inf if golden == "in" else -jnp.inf, scores)


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


__all__ = [
    "SELECTORS",
    "as_mask",
    "check_forced",
    "check_selection",
    "choose",
    "fold_in",
    "random_scores",
    "share_over_group",
    "steer",
]
