"""Choosing by one set of keys and reading another, inside one model with a memory.

The paper's hypotheses (arXiv 2605.28640, Section 3.3) are that the memory's states are chosen
better than raw keys, and that they carry what an answer needs past the choice. Within the memory
model the two can be told apart: choose by the raw keys and read states, or the other way round.

What is exchanged is the sparse step alone: MoBA's prefill, decoding under Quest, what SnapKV keeps
and then reads. The other phase reads states, as the model was trained to.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, Int32

from ratjax.errors import ConfigError, check_choice
from ratjax.shapes import Lengths, PromptKeys, Queries
from ratjax.sparsity.cache import KVCache
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.pattern import Both, Cache, Pattern, Reads
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV

SETS = ("states", "raw")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BothCaches:
    """A cache of states and one of raw keys and values; None where that set is not kept."""

    states: Cache | None
    raw: Cache | None

    def append(self, layer: Int[Array, ""], k: Both, v: Both) -> "BothCaches":
        return BothCaches(
            *(
                cache if cache is None else cache.append(layer, *token)
                for cache, *token in zip((self.states, self.raw), k, v, strict=True)
            )
        )

    def layer(self, index: Int[Array, ""]) -> "BothCaches":
        """The view of one layer of a stack."""
        return BothCaches(*(c if c is None else c.layer(index) for c in (self.states, self.raw)))

    @property
    def context(self) -> Int32[Array, "*any B"]:
        """Tokens so far, those that are no longer held included."""
        return (self.states if self.raw is None else self.raw).context


@dataclasses.dataclass(frozen=True)
class Swapped(Pattern):
    """A pattern that chooses by one set and reads another; not both are states.

    Attributes:
      pattern: which one.
      select_with: the keys by which entries are chosen: the memory's `states`, or `raw` ones.
      attend_to: the keys and values that are read of them, likewise.
    """

    pattern: Quest | MoBA | SnapKV
    select_with: str = "states"
    attend_to: str = "states"

    def __post_init__(self):
        check_choice("swapped.select_with", self.select_with, SETS)
        check_choice("swapped.attend_to", self.attend_to, SETS)
        if self.select_with == self.attend_to == "states":
            raise ConfigError("swapped.attend_to", "states", "with both sets states, swap nothing")
        if self.pattern.selector == "random" and self.select_with != "states":
            raise ConfigError(
                "swapped.select_with", self.select_with, "a random selector looks at no keys"
            )

    @property
    def uses_raw(self) -> bool:
        return True

    def attend(
        self,
        q: Queries,
        k: Both,
        v: Both,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
    ) -> tuple[Queries, Reads]:
        if not isinstance(self.pattern, MoBA):
            return self.pattern.attend(q, k.states, v.states, lengths, keys)
        return self.pattern.attend(q, self._read(k), self._read(v), lengths, keys, self._scored(k))

    def compress(
        self,
        q: Queries,
        k: Both,
        v: Both,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> BothCaches | KVCache:
        pattern, rest = self.pattern, (lengths, new_tokens)
        read, scored = (self._read(k), self._read(v)), (self._scored(k), self._scored(v))
        match pattern:
            case MoBA():
                return pattern.compress(q, k.states, v.states, *rest)
            case SnapKV():
                return self._caches(pattern.compress(q, *read, *rest, keys, scored[0]))
        return self._caches(KVCache.create(*read, *rest), pattern.compress(q, *scored, *rest))

    def adopt(
        self,
        prompt: BothCaches,
        queries: Float[Array, "L B W H D"] | None,
        new_tokens: int,
        keys: PromptKeys | None = None,
        golden: Int32[Array, "B N"] | None = None,
    ) -> BothCaches:
        rest = queries, new_tokens, keys, golden
        read, scored = self._read(prompt), self._scored(prompt)
        if isinstance(self.pattern, SnapKV):
            return self._caches(self.pattern.adopt(read, *rest, scored.k))
        return self._caches(read, self.pattern.adopt(scored, *rest))

    def restore(self, prompt: BothCaches, used: BothCaches) -> BothCaches:
        pairs = ((prompt.states, used.states), (prompt.raw, used.raw))
        return BothCaches(
            *(old if new is None else self.pattern.restore(old, new) for old, new in pairs)
        )

    def decode(
        self, q: Float[Array, "B 1 H D"], cache: BothCaches, keys: PromptKeys | None = None
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        read, scored = self._read(cache), self._scored(cache)
        if isinstance(self.pattern, Quest) and scored is not read:
            return self.pattern.decode(q, read, keys, scored)
        return self.pattern.decode(q, read, keys)

    def holds(
        self,
        q: Float[Array, "B 1 H D"],
        cache: BothCaches,
        position: Int32[Array, " B"],
        keys: PromptKeys | None = None,
    ) -> Bool[Array, "B H"]:
        """As `Quest.holds` and `SnapKV.holds`."""
        paged = isinstance(self.pattern, Quest)
        chosen = self._scored(cache) if paged else self._read(cache)
        return self.pattern.holds(q, chosen, position, keys)

    @property
    def prefills_as(self) -> Pattern:
        return self if isinstance(self.pattern, MoBA) else self.pattern.prefills_as

    @property
    def decodes_as(self) -> Pattern:
        return self.pattern.decodes_as if isinstance(self.pattern, MoBA) else self

    @property
    def window_queries(self) -> int:
        return self.pattern.window_queries

    @property
    def sets(self) -> int:
        """How many sets of keys and values are kept while decoding: Quest's bounds grow by one."""
        return 1 + (isinstance(self.pattern, Quest) and self._chooses != self.attend_to)

    @property
    def _chooses(self) -> str:
        # A random selector looks at no keys: it needs no second set.
        return self.attend_to if self.pattern.selector == "random" else self.select_with

    def _scored(self, both: Both | BothCaches) -> Any:
        return getattr(both, self._chooses)

    def _read(self, both: Both | BothCaches) -> Any:
        return getattr(both, self.attend_to)

    def _caches(self, read: KVCache, scored: KVCache | None = None) -> BothCaches:
        """What is read in its place, and in its own what is chosen by, which may be the same."""
        kept = dict.fromkeys(SETS) | {self.attend_to: read}
        return BothCaches(**(kept if scored is None else kept | {self._chooses: scored}))
