"""Attention of a tile of queries on a TPU core: keys along the sublanes, queries along the lanes.

With scores as [keys, queries], what belongs to a query (its maximum, its sum, the log-sum-exp, its
share of the mask) is one row of lanes: reducing over keys is elementwise work between registers,
and a row is spread over them for nothing. Results gather as [D, queries], turned around once.
Accumulation is in float32; the operands of products have the inputs' dtype.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

_LOWEST = -1e30  # below any score, and finite: a query that has seen nothing makes no NaN


class Running(NamedTuple):
    """Softmax over the keys seen so far.

    Attributes:
      top: [1, queries], the largest score.
      total: [1, queries], the sum of exp(score - top).
      acc: [D, queries], the values weighed by it.
    """

    top: jax.Array
    total: jax.Array
    acc: jax.Array


def start(channels: int, queries: int) -> Running:
    return Running(
        jnp.full((1, queries), _LOWEST, jnp.float32),
        jnp.zeros((1, queries), jnp.float32),
        jnp.zeros((channels, queries), jnp.float32),
    )


def absorb(state: Running, scores, v) -> Running:
    """One more tile of keys: scores [keys, queries], -inf where hidden; v [keys, D]."""
    top = jnp.maximum(state.top, jnp.max(scores, axis=0, keepdims=True))
    weights = jnp.exp(scores - top)
    keep = jnp.exp(state.top - top)
    total = state.total * keep + jnp.sum(weights, axis=0, keepdims=True)
    return Running(top, total, state.acc * keep + product_of_rows(v, weights.astype(v.dtype)))


def side_by_side(states: list[Running]) -> Running:
    """Neighbouring tiles of queries as one."""
    return Running(*(jnp.concatenate(parts, axis=1) for parts in zip(*states, strict=True)))


def finish(state: Running):
    """(result [queries, D], log-sum-exp [1, queries]); zeros where nothing was seen."""
    total = jnp.where(state.total == 0, 1.0, state.total)
    return (state.acc / total).T, state.top + jnp.log(total)


def scores_of(k, q):
    """[keys, D], [queries, D] -> q . k / sqrt(D), [keys, queries] in float32."""
    return _product(k, q, 1, 1) * q.shape[1] ** -0.5


def product_of_rows(a, b):
    """[rows, D], [rows, queries] -> a^T b, [D, queries]."""
    return _product(a, b, 0, 0)


def clear(rows: int, *refs):
    """Zeros, `rows` rows of each at a time: a head's keys at once are thousands of stores."""

    def step(n, _):
        for ref in refs:
            there = pl.ds(pl.multiple_of(n * rows, rows), rows)
            ref[there, :] = jnp.zeros((rows, ref.shape[1]), ref.dtype)

    lax.fori_loop(0, refs[0].shape[0] // rows, step, None)


class Slopes(NamedTuple):
    """Gradients that a tile of keys and one of queries have for each other, in float32.

    Attributes:
      dq: [D, queries].
      dk: [keys, D].
      dv: [keys, D].
    """

    dq: jax.Array
    dk: jax.Array
    dv: jax.Array


def slopes(scores, q, k, v, d_out, lse, delta) -> Slopes:
    """Backward of one tile.

    Args:
      scores: [keys, queries], -inf where hidden.
      q: [queries, D]; d_out likewise.
      k: [keys, D]; v likewise.
      lse: [1, queries], log-sum-exp over all keys.
      delta: [1, queries], sum(d_out * out) over the channels.
    """
    weights = jnp.exp(scores - lse)
    d_scores = (weights * (_product(v, d_out, 1, 1) - delta)).astype(q.dtype)
    scale = q.shape[1] ** -0.5  # of the sums, which are smaller than what they are summed from
    return Slopes(
        product_of_rows(k, d_scores) * scale,
        _product(d_scores, q, 1, 0) * scale,
        _product(weights.astype(d_out.dtype), d_out, 1, 0),
    )


def _product(a, b, of_a: int, of_b: int):
    """Contracts axis `of_a` of `a` with `of_b` of `b`; float32 stays float32."""
    return lax.dot_general(
        a,
        b,
        (((of_a,), (of_b,)), ((), ())),
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
