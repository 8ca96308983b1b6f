"""Attention over listed blocks on a TPU core, a tile of queries a step.

A head's keys and values wait in VMEM while all its queries pass, so that skipping a block costs
nothing and taking one is a slice. A tile walks the list of the blocks that any of its queries
chose, several at once; which of the queries chose a block is one bit a query, and those that did
not have scores of -inf there, as for keys in their future.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ratjax_kernels.pallas_softmax import absorb, clear, finish, scores_of, slopes, start

_NOWHERE = 2**30


class Sizes(NamedTuple):
    """How blocks lie in VMEM.

    Attributes:
      block: positions of a block.
      rows: rows of one, `block` in whole registers.
      at_once: blocks treated at once.
    """

    block: int
    rows: int
    at_once: int


class _Handful(NamedTuple):
    """What a tile of queries reads at once.

    Attributes:
      starts: first row of each block.
      k: [keys, D].
      v: [keys, D].
      scores: [keys, queries], -inf where hidden.
    """

    starts: list[jax.Array]
    k: jax.Array
    v: jax.Array
    scores: jax.Array


def _read(sizes: Sizes, n, first, q, list_ref, bits_ref, k_ref, v_ref) -> _Handful:
    """The n-th handful of listed blocks; those behind the list's end are hidden."""
    queries = q.shape[0]
    at = first + lax.broadcasted_iota(jnp.int32, (1, queries), 1)
    row = lax.broadcasted_iota(jnp.int32, (sizes.rows, 1), 0)
    row = jnp.where(row < sizes.block, row, _NOWHERE)
    starts, parts, scores = [], [], []
    for each in range(sizes.at_once):
        entry = n * sizes.at_once + each
        block = list_ref[0, 1 + entry]
        begin = pl.multiple_of(block * sizes.rows, sizes.rows)
        word = bits_ref[pl.ds(lax.shift_right_logical(block, 5), 1), :]
        bit = lax.shift_right_logical(word, jnp.broadcast_to(block & 31, word.shape)) & 1
        listed = (bit == 1) & (entry < list_ref[0, 0])
        # One comparison for "listed", "not in the future" and "a position at all".
        last = jnp.where(listed, at - block * sizes.block, -1)
        k, v = k_ref[pl.ds(begin, sizes.rows), :], v_ref[pl.ds(begin, sizes.rows), :]
        starts.append(begin)
        parts.append((k, v))
        scores.append(jnp.where(row <= last, scores_of(k, q), -jnp.inf))
    k, v = (jnp.concatenate(x, axis=0) for x in zip(*parts, strict=True))
    return _Handful(starts, k, v, jnp.concatenate(scores, axis=0))


def _steps(sizes: Sizes, list_ref):
    return lax.div(list_ref[0, 0] + sizes.at_once - 1, sizes.at_once)


def forward_kernel(sizes: Sizes, list_ref, bits_ref, q_ref, k_ref, v_ref, out_ref, lse_ref):
    """list [1, 1 + entries]; bits [words, TILE]; q [TILE, D]; k, v [S, D] -> out, lse [1, TILE]."""
    queries, channels = q_ref.shape
    first = pl.program_id(2) * queries
    q = q_ref[...]

    def step(n, state):
        blocks = _read(sizes, n, first, q, list_ref, bits_ref, k_ref, v_ref)
        return absorb(state, blocks.scores, blocks.v)

    state = lax.fori_loop(0, _steps(sizes, list_ref), step, start(channels, queries))
    out, lse = finish(state)
    out_ref[...] = out.astype(out_ref.dtype)
    lse_ref[...] = lse


def backward_kernel(
    sizes: Sizes, list_ref, bits_ref, q_ref, d_out_ref, lse_ref, delta_ref, k_ref, v_ref,
    dq_ref, dk_ref, dv_ref,
):  # fmt: skip
    """As forward; dk and dv, [S, D] in float32, gather while all queries of a key head pass."""
    queries, channels = q_ref.shape
    member, tile = pl.program_id(2), pl.program_id(3)

    @pl.when((member == 0) & (tile == 0))
    def _():
        clear(sizes.rows, dk_ref, dv_ref)

    q, d_out, lse, delta = q_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]

    def step(n, dq):
        blocks = _read(sizes, n, tile * queries, q, list_ref, bits_ref, k_ref, v_ref)
        part = slopes(blocks.scores, q, blocks.k, blocks.v, d_out, lse, delta)
        for each, begin in enumerate(blocks.starts):
            there = pl.ds(begin, sizes.rows)
            here = slice(each * sizes.rows, (each + 1) * sizes.rows)
            dk_ref[there, :] += part.dk[here]
            dv_ref[there, :] += part.dv[here]
        return dq + part.dq

    zeros = jnp.zeros((channels, queries), jnp.float32)
    dq = lax.fori_loop(0, _steps(sizes, list_ref), step, zeros)
    dq_ref[...] = dq.T.astype(dq_ref.dtype)
