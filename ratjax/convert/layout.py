"""Where each of our parameters lies in a source checkpoint, and how to read a part of it."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ratjax.convert.tensors import DTYPES, Tensors
from ratjax.errors import InputError, nearest

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Placement:
    """One parameter as rows of source tensors.

    Attributes:
      keys: the source tensor of each layer; a single one outside the blocks.
      source: shape of each of these tensors.
      split: shape that the rows taken are given first: [out, in] opened into heads.
      axes: our order of `split`'s axes.
      start: the first row taken, where several parameters share one matrix.
      stacked: whether layers are stacked along a leading axis.
    """

    keys: tuple[str, ...]
    source: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]
    start: int = 0
    stacked: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of our parameter."""
        layers = (len(self.keys),) if self.stacked else ()
        return (*layers, *(self.split[axis] for axis in self.axes))

    @property
    def rows(self) -> slice:
        """The rows of each source tensor that belong to this parameter."""
        count = math.prod(self.split) // math.prod(self.source[1:])
        return slice(self.start, self.start + count)

    def dtype(self, tensors: Tensors) -> np.dtype:
        """The source's; float32 where layers differ."""
        found = {tensors[key].dtype for key in self.keys}
        return DTYPES[found.pop() if len(found) == 1 else "F32"]

    def read(self, tensors: Tensors, index: Index | None = None) -> np.ndarray:
        """A part of our parameter; touches no other bytes of the source.

        Args:
          tensors: the source.
          index: one slice an axis of `shape`; None reads all.

        Returns:
          A contiguous array in `dtype(tensors)`.
        """
        index = tuple(slice(None) for _ in self.shape) if index is None else index
        lengths = [len(range(*s.indices(n))) for s, n in zip(index, self.shape, strict=True)]
        out = np.empty(lengths, self.dtype(tensors))
        if not self.stacked:
            _copy(out, self._layer(tensors, self.keys[0])[index])
            return out
        for slot, key in zip(out, self.keys[index[0]], strict=True):
            _copy(slot, self._layer(tensors, key)[index[1:]])
        return out

    def _layer(self, tensors: Tensors, key: str) -> np.ndarray:
        return tensors[key].view()[self.rows].reshape(self.split).transpose(self.axes)

    def to_source(self, layer: np.ndarray) -> np.ndarray:
        """One layer of our parameter in the source's shape; the inverse of reading it."""
        return layer.transpose(np.argsort(self.axes)).reshape(self.source)


Layout = Mapping[str, Placement]


def _copy(out: np.ndarray, part: np.ndarray, block: int = 1 << 22) -> None:
    """`out[...] = part`; in blocks along the source's slowest axis, which caches prefer."""
    slow = int(np.argmax(np.abs(part.strides))) if part.ndim else 0
    if part.size <= block:
        out[...] = part
        return
    step = max(1, block * part.shape[slow] // part.size)
    for start in range(0, part.shape[slow], step):
        where = (slice(None),) * slow + (slice(start, start + step),)
        out[where] = part[where]


def check(tensors: Tensors, layout: Layout, source: object) -> None:
    """Compares a source's tensors with what the layout expects.

    Raises:
      InputError: tensors that are unknown, missing, mis-shaped, or of a dtype that is not a
        floating point one of 16 or 32 bits; the message names the first of them.
    """
    expected = {key: p.source for p in layout.values() for key in p.keys}
    missing = [key for key in expected if key not in tensors]
    unknown = [key for key in tensors if key not in expected]
    if unknown:
        hint = nearest(unknown[0], missing or expected) if len(expected) < 5000 else ""
        if not hint.startswith("did you mean"):
            hint = "the config has no place for it"
        raise InputError(f"{source}: unknown tensor {unknown[0]}{_more(unknown)}; {hint}")
    if missing:
        raise InputError(f"{source}: missing tensor {missing[0]}{_more(missing)}")
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise InputError(
                f"{source}: {key} has shape {list(tensors[key].shape)}, by the config it is "
                f"{list(shape)}"
            )
        if tensors[key].dtype not in DTYPES:
            raise InputError(
                f"{source}: {key} is stored as {tensors[key].dtype}; readable are "
                f"{', '.join(DTYPES)}: quantised checkpoints have to be restored first"
            )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
