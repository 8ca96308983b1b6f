"""MoBA (arXiv 2502.13189): in prefill each query attends to K blocks, chosen by mean key.

The current block is always attended, causally, and counts inside K; earlier blocks are
scored by the query's product with the mean of their keys. The paper also forces the first
block. Decode is dense, as in MoBA's own use.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from ratjax.errors import check_positive
from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.dense import Dense, full_lengths
from ratjax.sparsity.pattern import Reads, causal_pairs
from ratjax.sparsity.selection import (
    check_forced,
    check_selection,
    choose,
    random_scores,
    share_over_group,
)
from ratjax_kernels import block_means, block_prefill, block_select


def block_scores(q: Queries, means: Float32[Array, "B P G D"]) -> Float32[Array, "B H T P"]:
    """<query, mean key of the block>, float32, unscaled, for each query head."""
    batch, time, heads, _ = q.shape
    kv_heads = means.shape[2]
    grouped = q.astype(jnp.float32).reshape(batch, time, kv_heads, heads // kv_heads, -1)
    scores = jnp.einsum("btgrd,bpgd->bgrtp", grouped, means)
    return scores.reshape(batch, heads, time, -1)


def select(
    scores: Float32[Array, "B H T P"], *, block_size: int, blocks: int, force_first: bool = True
) -> Int32[Array, "B H T K"]:
    """The blocks each query attends to: its own, and the best earlier ones.

    A block can be scored once it lies wholly in the past, so a partial last block is only
    ever read as the current one.

    Returns:
      Block indices in ascending order, -1 where a query has fewer than K.
    """
    block = jnp.arange(scores.shape[-1])
    current = (jnp.arange(scores.shape[-2]) // block_size)[:, None]
    forced = ((block == 0) & force_first) | (block == current)
    return choose(scores, block <= current, forced, blocks)


@partial(jax.jit, static_argnames=("block_size", "blocks", "force_first"))
def prefill(
    q: Queries, k: Keys, v: Values, *, block_size: int, blocks: int, force_first: bool = True
) -> Queries:
    """MoBA attention over whole sequences.

    Args:
      q: queries, rotated, [B, T, H, D].
      k: keys, rotated, [B, T, G, D]; T need not be a multiple of `block_size`.
      v: values.
      block_size: tokens a block.
      blocks: K, the blocks a query attends to, its own included.
      force_first: block 0 is always attended.

    Returns:
      [B, T, H, D]. Differentiable; the selection itself has no gradient.

    Raises:
      ConfigError: more blocks forced than kept, or a block size below 1.
    """
    pattern = MoBA(block_size, blocks, force_first)
    return block_prefill(q, k, v, pattern.select(q, k), block_size)


@dataclasses.dataclass(frozen=True)
class MoBA(Dense):
    """Block-sparse prefill; dense decode over the whole cache.

    Attributes:
      block_size: tokens a block.
      blocks: K, the current block included.
      force_first: block 0 is always attended (the paper; not in MoBA itself).
      per: each `query_head` selects for itself (MoBA), or one selection per `kv_head`.
      selector: `original`, or `random`: drawn for every query, forced blocks kept.
    """

    block_size: int
    blocks: int
    force_first: bool = True
    per: str = "query_head"
    selector: str = "original"

    def __post_init__(self):
        check_positive("moba.block_size", self.block_size)
        check_forced("moba", "blocks", self.blocks, 1 + self.force_first)
        check_selection("moba", self.per, self.selector)

    def select(
        self, q: Queries, k: Keys, keys: PromptKeys | None = None
    ) -> Int32[Array, "B H T K"]:
        """The blocks each query attends to; see `select`."""
        settings = {
            "block_size": self.block_size,
            "blocks": self.blocks,
            "force_first": self.force_first,
        }
        if self.selector == "random":
            n = -(-k.shape[1] // self.block_size)
            scores = random_scores(keys, (q.shape[2], q.shape[1], n))
        else:
            means = block_means(k, self.block_size)
            if self.per == "query_head":
                return block_select(q, means, **settings)
            scores = block_scores(q, means)
        if self.per == "kv_head":
            scores = share_over_group(scores, k.shape[2])
        return select(scores, **settings)

    def attend(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
        scored: Keys | None = None,
    ) -> tuple[Queries, Reads]:
        """As in `Pattern`; blocks are chosen by the keys `scored` where those are others."""
        ids = self.select(q, k if scored is None else scored, keys)
        lengths = full_lengths(q, lengths)
        position = jnp.arange(q.shape[1])[:, None]
        tokens = jnp.clip(position + 1 - ids * self.block_size, 0, self.block_size)
        inside = (ids >= 0) & (position < lengths[:, None, None, None])
        read = jnp.where(inside, tokens, 0).sum((-1, -2)).mean(-1, dtype=jnp.float32)
        out = block_prefill(q, k, v, ids, self.block_size)
        return out, Reads(read, causal_pairs(lengths))

    @property
    def prefills_as(self) -> "MoBA":
        return self

    @property
    def decodes_as(self) -> Dense:
        return Dense()
