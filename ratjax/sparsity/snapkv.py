"""SnapKV (arXiv 2404.14469): after prefill keep the C tokens that the prompt's end looks at.

The last W queries of the prompt (the observation window) vote with their attention weights;
votes are pooled along the sequence, the best prefix tokens are kept beside the window
itself, and the rest of the cache is discarded. Tokens generated later are appended
uncompressed. Capacity includes the window. Prefill attends to everything.
"""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from ratjax.errors import ConfigError, check_choice, check_positive
from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.cache import KVCache
from ratjax.sparsity.dense import Dense, full_lengths
from ratjax.sparsity.pattern import Reads
from ratjax.sparsity.selection import (
    check_forced,
    check_selection,
    fold_in,
    random_scores,
    steer,
)
from ratjax_kernels import kept_positions, window_scores


def last_queries(q: Queries, lengths: Lengths, window: int) -> Float[Array, "B W H D"]:
    """The last `window` queries of each prompt; a shorter prompt repeats its first one in
    front (`window_scores` does not count queries at negative positions)."""
    positions = lengths[:, None] - window + jnp.arange(window)
    return jnp.take_along_axis(q, jnp.maximum(positions, 0)[..., None, None], axis=1)


def pool(
    scores: Float32[Array, "B G S"], kernel_size: int, pooling: str
) -> Float32[Array, "B G S"]:
    """Average or maximum over `kernel_size` neighbours, stride 1, same length.

    Zero padding counts in the average, as in the original. (Weights are not negative, so
    zeros outside leave a maximum as it is.)
    """
    # Shifted copies added up become one elementwise pass; `lax.reduce_window` is many times slower.
    half, slots = kernel_size // 2, scores.shape[-1]
    padded = jnp.pad(scores, ((0, 0), (0, 0), (half, half)))
    shifted = [padded[..., i : i + slots] for i in range(kernel_size)]
    if pooling == "max":
        return functools.reduce(jnp.maximum, shifted)
    return functools.reduce(jnp.add, shifted) / kernel_size


def select(
    scores: Float32[Array, "B G S"],
    lengths: Lengths,
    *,
    window: int,
    capacity: int,
) -> Int32[Array, "B G C"]:
    """Positions to keep, ascending, -1 last: the window, then the best of the prefix."""
    return kept_positions(scores, lengths, window, capacity)


def gather(x: Keys, positions: Int32[Array, "B G C"]) -> Float[Array, "B C G D"]:
    """Each key/value head's entries at its own positions; zeros where the position is -1."""
    index = jnp.moveaxis(positions, 1, 2)[..., None]
    kept = jnp.take_along_axis(x, jnp.maximum(index, 0), axis=1)
    return jnp.where(index >= 0, kept, 0)


@partial(jax.jit, static_argnames=("window", "capacity", "kernel_size", "pooling"))
def compress(
    q: Queries,
    k: Keys,
    v: Values,
    *,
    window: int,
    capacity: int,
    kernel_size: int = 5,
    pooling: str = "avg",
    lengths: Lengths | None = None,
) -> tuple[Float[Array, "B C G D"], Float[Array, "B C G D"], Int32[Array, "B G C"]]:
    """Keeps `capacity` entries of each prompt and key/value head.

    Args:
      q: the prompt's queries, rotated, [B, T, H, D].
      k: its keys, rotated, [B, T, G, D].
      v: its values.
      window: W, the queries that vote and the tokens always kept: each prompt's last.
      capacity: C, entries kept, the window included.
      kernel_size: votes are pooled over this many neighbours; odd.
      pooling: `avg` or `max`.
      lengths: valid tokens of each prompt (None: all T).

    Returns:
      (keys [B, C, G, D], values, positions [B, G, C]); positions ascend, and are -1 (the
      entries zero) where a prompt is shorter than the capacity.

    Raises:
      ConfigError: a window above the capacity, an even kernel, an unknown pooling.
    """
    pattern = SnapKV(window, capacity, kernel_size, pooling)
    positions = pattern.select(q, k, full_lengths(q, lengths))
    return gather(k, positions), gather(v, positions), positions


@dataclasses.dataclass(frozen=True)
class SnapKV(Dense):
    """Dense prefill; decode reads what was kept, and everything generated since.

    Attributes:
      window: W, the observation window in tokens.
      capacity: C, tokens kept after prefill, the window included.
      kernel_size: pooling width, odd.
      pooling: `avg` or `max`.
      selector: `original`, or `random`: the prefix tokens are drawn once, the window kept.
      golden: tokens that the right answer is copied from are kept always (`in`), or never but for
        the window's (`out`); "" for neither.
    """

    window: int
    capacity: int
    kernel_size: int = 5
    pooling: str = "avg"
    selector: str = "original"
    golden: str = ""

    def __post_init__(self):
        check_positive("snapkv.window", self.window)
        check_forced("snapkv", "capacity", self.capacity, self.window)
        check_positive("snapkv.kernel_size", self.kernel_size)
        if self.kernel_size % 2 == 0:
            raise ConfigError("snapkv.kernel_size", self.kernel_size, "must be odd")
        check_choice("snapkv.pooling", self.pooling, ("avg", "max"))
        check_selection("snapkv", "kv_head", self.selector)

    @property
    def window_queries(self) -> int:
        return 0 if self.selector == "random" else self.window

    def select(
        self, q: Queries, k: Keys, lengths: Lengths, keys: PromptKeys | None = None
    ) -> Int32[Array, "B G C"]:
        """The positions to keep; see `select`. Grouped query heads vote together."""
        queries = last_queries(q, lengths, self.window_queries)
        return self._select(queries, k, k.shape[1], lengths, keys)

    def _select(
        self,
        queries: Float[Array, "B W H D"] | None,
        k: Keys,
        width: int,
        lengths: Lengths,
        keys: PromptKeys | None,
        golden: Int32[Array, "B N"] | None = None,
    ) -> Int32[Array, "B G C"]:
        """As `select`, from the window's queries; `k` may have slots beyond the prompts' `width`,
        on which random draws must not depend."""
        if self.selector == "random":
            scores = random_scores(keys, (k.shape[2], width))
        else:
            votes = window_scores(queries, k, lengths)
            prefix = jnp.arange(k.shape[1]) < lengths[:, None, None] - self.window
            scores = pool(jnp.where(prefix, votes, 0), self.kernel_size, self.pooling)
        if self.golden:
            scores = steer(scores, golden, self.golden)
        return select(scores, lengths, window=self.window, capacity=self.capacity)

    def compress(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
        scored: Keys | None = None,
    ) -> "SnapKVCache":
        """As in `Pattern`; tokens are chosen by the keys `scored` where those are others."""
        positions = self.select(q, k if scored is None else scored, lengths, keys)
        return self._keep(k, v, positions, lengths, new_tokens)

    def adopt(
        self,
        prompt: KVCache,
        queries: Float[Array, "L B W H D"] | None,
        new_tokens: int,
        keys: PromptKeys | None = None,
        golden: Int32[Array, "B N"] | None = None,
        scored: Float[Array, "L B S G D"] | None = None,
    ) -> "SnapKVCache":
        """As in `Pattern`; tokens are chosen by the keys `scored` where those are others."""
        layers, width = prompt.k.shape[0], prompt.k.shape[2] - new_tokens
        last = None if queries is None else queries[:, :, queries.shape[2] - self.window_queries :]

        def compress(layer: tuple) -> "SnapKVCache":
            index, scored, k, v, lengths, q = layer
            positions = self._select(q, scored, width, lengths, fold_in(keys, index), golden)
            return self._keep(k, v, positions, lengths, new_tokens)

        scored = prompt.k if scored is None else scored
        numbers = jnp.arange(layers, dtype=jnp.int32)
        each = (numbers, scored, prompt.k, prompt.v, prompt.lengths, last)
        return jax.lax.map(compress, each)

    def restore(self, prompt: KVCache, used: "SnapKVCache") -> KVCache:
        return prompt

    def _keep(
        self,
        k: Keys,
        v: Values,
        positions: Int32[Array, "B G C"],
        lengths: Lengths,
        new_tokens: int,
    ) -> "SnapKVCache":
        kept = KVCache.create(
            gather(k, positions),
            gather(v, positions),
            jnp.minimum(lengths, self.capacity),
            new_tokens,
        )
        return SnapKVCache(kept.k, kept.v, kept.lengths, lengths - kept.lengths, positions)

    def holds(
        self,
        q: Float[Array, "B 1 H D"],
        cache: "SnapKVCache",
        position: Int32[Array, " B"],
        keys: PromptKeys | None = None,
    ) -> Bool[Array, "B H"]:
        """Whether each head can read a position of the prompt."""
        held = (cache.positions == position[:, None, None]).any(-1)
        return jnp.repeat(held, q.shape[2] // held.shape[1], axis=1)

    def decode(
        self,
        q: Float[Array, "B 1 H D"],
        cache: "SnapKVCache",
        keys: PromptKeys | None = None,
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        out, reads = super().decode(q, cache)
        return out, Reads(reads.read, reads.visible + cache.discarded)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SnapKVCache(KVCache):
    """What was kept of a prompt.

    Attributes:
      discarded: how many of its tokens were not.
      positions: which were, by key/value head; -1 where a prompt has fewer than the capacity.
    """

    discarded: Int32[Array, "*any B"]
    positions: Int32[Array, "*any B G C"]

    @property
    def context(self) -> Int32[Array, "*any B"]:
        return self.lengths + self.discarded

    def layer(self, index: Int[Array, ""]) -> "SnapKVCache":
        small = {name: getattr(self, name)[index] for name in ("lengths", "discarded", "positions")}
        return dataclasses.replace(self, **small, at=index)
