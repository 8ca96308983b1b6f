"""What decode on a TPU is made of: one tile of keys against the queries that share them.

The R query heads of a key/value head stand on sublanes, keys on lanes. Both products go through the
matrix units, which take the tile's keys and values as the stationary operand: a tile costs the same
for one query as for eight.
"""

import jax.numpy as jnp
from jax import lax

# Below every score; its exponential beside a real score is zero.
_NOTHING = -1e30


def start(rows: int, channels: int):
    """(maximum, sum, weighted values) of queries that have seen nothing."""
    narrow = (rows, 1)
    return (
        jnp.full(narrow, _NOTHING, jnp.float32),
        jnp.zeros(narrow, jnp.float32),
        jnp.zeros((rows, channels), jnp.float32),
    )


def step(q, k, v, times, state, scale):
    """Takes in a tile.

    Args:
      q: [R, D] queries.
      k: [N, D] keys; those that count for nothing may be anything.
      v: [N, D] values, all finite.
      times: float32 [R, N], how often each key counts.
      state: from `start` or the step before.
      scale: of the scores.
    """
    top, total, mean = state
    scores = product(q, k, (((1,), (1,)), ((), ()))) * scale
    scores = jnp.where(times > 0, scores, _NOTHING)
    new = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
    keep = jnp.exp(top - new)
    weights = times * jnp.exp(scores - new)
    total = total * keep + jnp.sum(weights, axis=1, keepdims=True)
    mean = mean * keep + product(weights.astype(v.dtype), v, (((1,), (0,)), ((), ())))
    return new, total, mean


def finish(state):
    """The averages [R, D]; zero for queries that have seen nothing."""
    _, total, mean = state
    return mean / jnp.where(total == 0, 1.0, total)


def product(a, b, dimensions):
    """In float32; of narrower operands exactly, but for the order of the sum."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    exact = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        dimensions,
        precision=exact,
        preferred_element_type=jnp.float32,
    )
