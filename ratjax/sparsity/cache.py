"""Key/value caches, for one layer or stacked over a run of layers.

Patterns build a cache for one layer; the model stacks those of a run along a leading axis
and carries the stack through its decode loop, where `append` writes one row of one layer in
place and `layer` gives the view that a pattern's decode reads.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PyTree

from ratjax.shapes import Keys, Lengths, Values
from ratjax_kernels import append


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

    Attributes:
      at: in the view of one layer of a stack, which one: k, v and what else is large are still
        those of all layers, everything small is this layer's. None elsewhere.
    """

    k: Float[Array, "*layers B S G D"]
    v: Float[Array, "*layers B S G D"]
    lengths: Int32[Array, "*any B"]
    at: Int[Array, ""] | None = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def create(cls, k: Keys, v: Values, lengths: Lengths, new_tokens: int) -> "KVCache":
        """One layer's cache with room for `new_tokens` more."""
        slots = k.shape[1] + new_tokens
        return cls(k=pad_slots(k, slots), v=pad_slots(v, slots), lengths=lengths)

    @property
    def context(self) -> Int32[Array, "*any B"]:
        """Tokens so far, those that are no longer held included."""
        return self.lengths

    def rewound(self, used: "KVCache") -> "KVCache":
        """This cache in the storage of `used`, which decoding has since written into.

        What was written lies beyond `lengths`, where nothing reads it.
        """
        return dataclasses.replace(self, k=used.k, v=used.v)

    def layer(self, index: Int[Array, ""]) -> "KVCache":
        """The view of one layer of a stacked cache."""
        return dataclasses.replace(self, lengths=self.lengths[index], at=index)

    def append(
        self, layer: Int[Array, ""], k: Float[Array, "B 1 G D"], v: Float[Array, "B 1 G D"]
    ) -> "KVCache":
        """Writes one token a row into `layer` of a stacked cache; a full row drops it."""
        k, v = append(self.k, self.v, self.lengths[layer], k, v, layer=layer)
        return dataclasses.replace(self, k=k, v=v, lengths=self.lengths.at[layer].add(1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache(KVCache):
    """A cache that also keeps each page's channel-wise bounds, kept up as tokens arrive.

    Attributes:
      golden: positions that the selection is steered to or from, where it is (`selection.steer`).
    """

    k_min: Float[Array, "*layers B P G D"]
    k_max: Float[Array, "*layers B P G D"]
    page_size: int = dataclasses.field(metadata={"static": True})
    golden: Int32[Array, "*any B N"] | None = dataclasses.field(default=None, kw_only=True)

    def layer(self, index: Int[Array, ""]) -> "PagedCache":
        golden = None if self.golden is None else self.golden[index]
        return dataclasses.replace(self, lengths=self.lengths[index], golden=golden, at=index)

    def append(
        self, layer: Int[Array, ""], k: Float[Array, "B 1 G D"], v: Float[Array, "B 1 G D"]
    ) -> "PagedCache":
        bounds = (self.k_min, self.k_max)
        k, v, k_min, k_max = append(
            self.k, self.v, self.lengths[layer], k, v, bounds, self.page_size, layer=layer
        )
        lengths = self.lengths.at[layer].add(1)
        return dataclasses.replace(self, k=k, v=v, k_min=k_min, k_max=k_max, lengths=lengths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCache:
    """A whole prompt and its last queries: what every pattern with a dense prefill starts from.

    Attributes:
      cache: the prompt.
      queries: its last queries; None where no pattern needs any.
    """

    cache: PyTree[Array]
    queries: Float[Array, "*layers B W H D"] | None


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
    positions: Int32[Array, "*any B S"]
    lengths: Int32[Array, "*any B"]
    dilation: int = dataclasses.field(metadata={"static": True})
    initial: int = dataclasses.field(metadata={"static": True})
    ring: int = dataclasses.field(metadata={"static": True})
    at: Int[Array, ""] | None = dataclasses.field(default=None, kw_only=True)

    def layer(self, index: Int[Array, ""]) -> "DilatedCache":
        """The view of one layer of a stacked cache; see `KVCache.at`."""
        positions, lengths = self.positions[index], self.lengths[index]
        return dataclasses.replace(self, positions=positions, lengths=lengths, at=index)

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


__all__ = ["DilatedCache", "KVCache", "PagedCache", "PromptCache", "pad_slots"]
