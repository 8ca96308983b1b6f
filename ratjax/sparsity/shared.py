"""The dense prefill that several patterns decode from, one after the other."""

import dataclasses

from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.cache import KVCache, PromptCache
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Both, Reads
from ratjax.sparsity.snapkv import last_queries
from ratjax.sparsity.swapped import BothCaches


@dataclasses.dataclass(frozen=True)
class SharedDense(Dense):
    """Dense, and keeps what some patterns choose by.

    Attributes:
      window: how many of each prompt's last queries, for the largest window among the patterns
        that share (SnapKV).
      raw: whether raw keys and values are kept too, in a cache of their own.
    """

    window: int = 0
    raw: bool = False

    @property
    def uses_raw(self) -> bool:
        return self.raw

    def attend(
        self,
        q: Queries,
        k: Keys | Both,
        v: Values | Both,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
    ) -> tuple[Queries, Reads]:
        if self.raw:
            k, v = k.states, v.states
        return super().attend(q, k, v, lengths, keys)

    def compress(
        self,
        q: Queries,
        k: Keys | Both,
        v: Values | Both,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> PromptCache:
        def create(k: Keys, v: Values) -> KVCache:
            return KVCache.create(k, v, lengths, new_tokens)

        cache = BothCaches(*map(create, k, v)) if self.raw else create(k, v)
        queries = last_queries(q, lengths, self.window) if self.window else None
        return PromptCache(cache, queries)
