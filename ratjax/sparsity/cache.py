"""Key/value caches, for one layer or stacked over a run of layers.

Patterns build a cache for one layer; the model stacks those of a run along a leading axis
and carries the stack through its decode loop, where `append` writes one row of one layer in
place and `layer` gives the view that a pattern's decode reads.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from ratjax.shapes import Keys, Lengths, Values


def pad_slots(x: Array, slots: int, axis: int = 1) -> Array:
    """Zeros appended along `axis` until it holds `slots`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, slots - x.shape[axis])
    return jnp.pad(x, widths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values in order of arrival; the first `lengths` slots of a row are valid.

    A slot is not a position: after SnapKV the slots hold what was kept.
    """

    k: Float[Array, "*layers B S G D"]
    v: Float[Array, "*layers B S G D"]
    lengths: Int32[Array, "*layers B"]

    @classmethod
    def create(cls, k: Keys, v: Values, lengths: Lengths, new_tokens: int) -> "KVCache":
        """One layer's cache with room for `new_tokens` more."""
        slots = k.shape[1] + new_tokens
        return cls(k=pad_slots(k, slots), v=pad_slots(v, slots), lengths=lengths)

    def layer(self, index: Int[Array, ""]) -> "KVCache":
        """The view of one layer of a stacked cache."""
        return jax.tree.map(lambda a: a[index], self)

    def append(
        self, layer: Int[Array, ""], k: Float[Array, "B 1 G D"], v: Float[Array, "B 1 G D"]
    ) -> "KVCache":
        """Writes one token a row into `layer` of a stacked cache; a full row drops it."""
        slots = self.lengths[layer]
        rows = jnp.arange(slots.shape[0])
        return dataclasses.replace(
            self,
            k=self.k.at[layer, rows, slots].set(k[:, 0], mode="drop"),
            v=self.v.at[layer, rows, slots].set(v[:, 0], mode="drop"),
            lengths=self.lengths.at[layer].add(1),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache(KVCache):
    """A cache that also keeps each page's channel-wise bounds, kept up as tokens arrive."""

    k_min: Float[Array, "*layers B P G D"]
    k_max: Float[Array, "*layers B P G D"]
    page_size: int = dataclasses.field(metadata={"static": True})

    def append(
        self, layer: Int[Array, ""], k: Float[Array, "B 1 G D"], v: Float[Array, "B 1 G D"]
    ) -> "KVCache":
        pages = self.lengths[layer] // self.page_size
        rows = jnp.arange(pages.shape[0])
        grown = super().append(layer, k, v)
        return dataclasses.replace(
            grown,
            k_min=self.k_min.at[layer, rows, pages].min(k[:, 0], mode="drop"),
            k_max=self.k_max.at[layer, rows, pages].max(k[:, 0], mode="drop"),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DilatedCache:
    """What a dilated pattern can still read: strided keys, the first ones, a ring of the last.

    Slot s of the strided part holds position (s + 1) * dilation - 1, slot s of the initial
    part position s, slot s of the ring the newest position that is s modulo its size. Memory
    grows by one slot every `dilation` tokens.
    """

    k: Float[Array, "*layers B S G D"]
    v: Float[Array, "*layers B S G D"]
    positions: Int32[Array, "*layers B S"]
    lengths: Int32[Array, "*layers B"]
    dilation: int = dataclasses.field(metadata={"static": True})
    initial: int = dataclasses.field(metadata={"static": True})
    ring: int = dataclasses.field(metadata={"static": True})

    layer = KVCache.layer

    def append(
        self, layer: Int[Array, ""], k: Float[Array, "B 1 G D"], v: Float[Array, "B 1 G D"]
    ) -> "DilatedCache":
        """Writes one token a row wherever it may be read later: up to three slots."""
        position = self.lengths[layer]
        rows = jnp.arange(position.shape[0])[:, None]
        total = self.k.shape[2]
        strided = total - self.initial - self.ring
        nowhere = jnp.full_like(position, total)
        places = [strided + self.initial + position % self.ring]
        if self.initial:
            places.append(jnp.where(position < self.initial, strided + position, nowhere))
        if strided:
            at_stride = (position + 1) % self.dilation == 0
            places.append(jnp.where(at_stride, position // self.dilation, nowhere))
        slots = jnp.stack(places, axis=1)
        return dataclasses.replace(
            self,
            k=self.k.at[layer, rows, slots].set(k, mode="drop"),
            v=self.v.at[layer, rows, slots].set(v, mode="drop"),
            positions=self.positions.at[layer, rows, slots].set(position[:, None], mode="drop"),
            lengths=self.lengths.at[layer].add(1),
        )


__all__ = ["DilatedCache", "KVCache", "PagedCache", "pad_slots"]
