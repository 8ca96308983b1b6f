"""Dense causal attention: every earlier entry is read. The baseline, and others' prefill."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.cache import KVCache
from ratjax.sparsity.pattern import Pattern, Reads, causal_pairs
from ratjax_kernels import dense_decode, dense_prefill


def prefill(q: Queries, k: Keys, v: Values) -> Queries:
    """Causal softmax attention, scale D^-0.5, T = S; grouped heads allowed."""
    return dense_prefill(q, k, v)


def full_lengths(q: Queries, lengths: Lengths | None) -> Lengths:
    """`lengths`, or the whole padded length for every prompt."""
    return jnp.full((q.shape[0],), q.shape[1], jnp.int32) if lengths is None else lengths


@dataclasses.dataclass(frozen=True)
class Dense(Pattern):
    """Reads everything.

    Patterns that are dense in one phase (Quest and SnapKV in prefill, MoBA in decode) inherit it.
    """

    def attend(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
    ) -> tuple[Queries, Reads]:
        pairs = causal_pairs(full_lengths(q, lengths))
        return prefill(q, k, v), Reads(pairs, pairs)

    def compress(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> KVCache:
        return KVCache.create(k, v, lengths, new_tokens)

    @property
    def prefills_as(self) -> Pattern:
        return Dense()

    def restore(self, prompt: KVCache, used: KVCache) -> KVCache:
        return prompt.rewound(used)

    def decode(
        self, q: Float[Array, "B 1 H D"], cache: KVCache, keys: PromptKeys | None = None
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        visible = cache.lengths.astype(jnp.float32)
        out = dense_decode(q, cache.k, cache.v, cache.lengths, layer=cache.at)
        return out, Reads(visible, visible)
