"""Watching a selection: does it hold the position that an answer's next token stands at?

The paper's hit rate (arXiv 2605.28640, Section 3.3): with g_t the position needed at decode step t
and I_t the candidates that a head selected, a head hits where g_t is in I_t at every step.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.pattern import Both, Cache, Pattern, Reads
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from ratjax.sparsity.swapped import Swapped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WatchedCache:
    """A cache, and the positions of the prompt that the decode steps need.

    Attributes:
      cache: the pattern's own.
      needed: by step; -1 where a step needs none.
      prompt: tokens of each prompt.
    """

    cache: Cache
    needed: Int32[Array, "*layers B N"]
    prompt: Int32[Array, "*layers B"]

    def append(
        self,
        layer: Int[Array, ""],
        k: Float[Array, "B 1 G D"] | Both,
        v: Float[Array, "B 1 G D"] | Both,
    ) -> "WatchedCache":
        return dataclasses.replace(self, cache=self.cache.append(layer, k, v))

    def layer(self, index: Int[Array, ""]) -> "WatchedCache":
        """The view of one layer of a stack."""
        return WatchedCache(self.cache.layer(index), self.needed[index], self.prompt[index])


@dataclasses.dataclass(frozen=True)
class Watched(Pattern):
    """A pattern whose decode steps also say which heads hit (`Reads.hits`); it reads the same.

    Works on adopted caches (`Pattern.adopt`), wrapped in a `WatchedCache`.
    """

    pattern: Quest | SnapKV | Swapped

    @property
    def uses_raw(self) -> bool:
        return self.pattern.uses_raw

    def attend(
        self,
        q: Queries,
        k: Keys | Both,
        v: Values | Both,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
    ) -> tuple[Queries, Reads]:
        return self.pattern.attend(q, k, v, lengths, keys)

    def compress(self, *args: Array, **options: Array) -> Cache:
        raise NotImplementedError("a watched pattern decodes from the cache of another prefill")

    def decode(
        self, q: Float[Array, "B 1 H D"], cache: WatchedCache, keys: PromptKeys | None = None
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        out, reads = self.pattern.decode(q, cache.cache, keys)
        step = cache.cache.context - cache.prompt - 1
        needed = jnp.take_along_axis(cache.needed, step[:, None], axis=1)[:, 0]
        held = self.pattern.holds(q, cache.cache, needed, keys)
        return out, reads._replace(hits=(held | (needed < 0)[:, None])[..., None])
