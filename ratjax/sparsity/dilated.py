"""Dilated attention with a local window and initial tokens, as RAT+ trains and runs it.

Key j is visible to query i iff j <= i and ((j + 1) % dilation == 0 or i - j <= local or
j < initial). A local window of 0 still leaves the token itself. (Repository wimh966/rat-plus.)
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ratjax.errors import ConfigError
from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.cache import DilatedCache
from ratjax.sparsity.dense import full_lengths
from ratjax.sparsity.pattern import Pattern, Reads, causal_pairs
from ratjax_kernels import dense_decode, strided_prefill


def visible(
    i: Int[Array, "..."], j: Int[Array, "..."], dilation: int, local: int, initial: int
) -> Bool[Array, "..."]:
    """The rule above, for broadcast positions of queries `i` and keys `j`."""
    kept = (i - j <= local) | (j < initial)
    if dilation > 0:
        kept |= (j + 1) % dilation == 0
    return (j <= i) & kept


@partial(jax.jit, static_argnames=("dilation", "local", "initial"))
def prefill(
    q: Queries, k: Keys, v: Values, *, dilation: int, local: int = 0, initial: int = 0
) -> Queries:
    """Attention over whole sequences under the rule above.

    Args:
      q: queries, rotated, [B, T, H, D].
      k: keys, rotated, [B, T, G, D].
      v: values.
      dilation: every dilation-th key is visible to all later queries; 1 is full attention,
        -1 leaves the local window and the initial tokens alone.
      local: how many tokens before itself a query sees.
      initial: how many first tokens every query sees.

    Returns:
      [B, T, H, D]; differentiable.

    Raises:
      ConfigError: a dilation of 0 or below -1, a negative window or initial count.
    """
    Dilated(dilation, local, initial)
    return strided_prefill(q, k, v, dilation, local, initial)


@dataclasses.dataclass(frozen=True)
class Dilated(Pattern):
    """Prefill, training and decode under one rule; the cache drops what it can never read.

    Attributes: see `prefill`.
    """

    dilation: int
    local: int = 0
    initial: int = 0

    def __post_init__(self):
        if self.dilation < 1 and self.dilation != -1:
            raise ConfigError("dilated.dilation", self.dilation, "must be at least 1, or -1")
        for field in ("local", "initial"):
            if getattr(self, field) < 0:
                raise ConfigError(f"dilated.{field}", getattr(self, field), "must not be negative")

    def attend(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
    ) -> tuple[Queries, Reads]:
        lengths = full_lengths(q, lengths)
        i = jnp.arange(q.shape[1])
        per_query = self.visible_count(i)
        read = jnp.where(i < lengths[:, None], per_query, 0).sum(-1).astype(jnp.float32)
        out = strided_prefill(q, k, v, self.dilation, self.local, self.initial)
        return out, Reads(read, causal_pairs(lengths))

    def visible_count(self, i: Int[Array, "..."]) -> Int[Array, "..."]:
        """How many keys a query at position i sees, in closed form."""
        # Disjoint parts: initial ones; then local ones from `start` on; then strided between.
        initial = jnp.minimum(i + 1, self.initial)
        start = jnp.maximum(i - self.local, initial)
        local = i + 1 - start
        if self.dilation < 0:
            return initial + jnp.maximum(local, 0)
        strided = start // self.dilation - initial // self.dilation
        return initial + jnp.maximum(local, 0) + jnp.maximum(strided, 0)

    def compress(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> DilatedCache:
        time, ring = k.shape[1], self.local + 1
        strided = (
            jnp.arange(self.dilation - 1, time + new_tokens, self.dilation, dtype=jnp.int32)
            if self.dilation > 0
            else jnp.zeros((0,), jnp.int32)
        )
        fixed = jnp.concatenate([strided, jnp.arange(self.initial, dtype=jnp.int32)])
        fixed = jnp.broadcast_to(fixed, (k.shape[0], fixed.size))
        # The newest position of each ring slot: the largest p < length with p % ring == slot.
        slot = jnp.arange(ring, dtype=jnp.int32)
        newest = lengths[:, None] - 1
        last = newest - (newest - slot) % ring
        positions = jnp.concatenate([fixed, last], axis=1)
        present = (positions >= 0) & (positions < lengths[:, None])
        index = jnp.clip(positions, 0, time - 1)[..., None, None]

        def take(x):
            return jnp.where(present[..., None, None], jnp.take_along_axis(x, index, axis=1), 0)

        return DilatedCache(
            k=take(k),
            v=take(v),
            positions=jnp.where(present, positions, -1),
            lengths=lengths,
            dilation=self.dilation,
            initial=self.initial,
            ring=ring,
        )

    def decode(
        self, q: Float[Array, "B 1 H D"], cache: DilatedCache, keys: PromptKeys | None = None
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        position, held = cache.lengths[:, None] - 1, cache.positions
        slots = held.shape[-1]
        part = jnp.arange(slots)
        strided_slots = slots - self.initial - cache.ring
        in_initial = (part >= strided_slots) & (part < strided_slots + self.initial)
        in_ring = part >= strided_slots + self.initial
        strided = (
            (held + 1) % self.dilation == 0 if self.dilation > 0 else jnp.zeros_like(held, bool)
        )
        # A position may stand in several parts: it is read from the first that holds it.
        read = held >= 0
        read &= ~(in_initial & strided)
        read &= ~(in_ring & (strided | (held < self.initial)))
        read &= ~in_ring | (position - held <= self.local)
        filled = jnp.full(read.shape[:1], slots, jnp.int32)
        out = dense_decode(q, cache.k, cache.v, filled, mask=read, layer=cache.at)
        return out, Reads(read.sum(-1).astype(jnp.float32), cache.lengths.astype(jnp.float32))
