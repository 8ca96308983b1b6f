"""The dense prefill that several patterns decode from, one after the other."""

import dataclasses

from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.cache import KVCache, PromptCache
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.snapkv import last_queries


@dataclasses.dataclass(frozen=True)
class SharedDense(Dense):
    """Dense, and keeps each prompt's last queries, from which SnapKV chooses.

    Attributes:
      window: how many queries, for the largest window among the patterns that share.
    """

    window: int

    def compress(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> PromptCache:
        cache = KVCache.create(k, v, lengths, new_tokens)
        return PromptCache(cache.k, cache.v, lengths, last_queries(q, lengths, self.window))
