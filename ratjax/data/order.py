"""Which record comes k-th: pure functions of a seed and k, so that no position is ever stored.

They take whole arrays of k and keep no state, so a run resumes from its step number
alone, reads any batch without reading those before it, and may change its number of hosts.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

ROUNDS = 6
RESOLUTION = 10_000  # weights are exact to one part in this many

Words = UInt64[np.ndarray, " n"]


def _hash(x: Words) -> Words:
    """A bijection of 64-bit words with every output bit depending on every input bit.

    SplitMix64's finaliser (Steele, Lea and Flood, 2014).
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffle_key(*parts: int) -> int:
    """One 64-bit word from several integers, such as (seed, stage, source)."""
    word = np.zeros(1, np.uint64)
    for part in parts:
        word = _hash(word ^ np.uint64(part))
    return int(word[0])


def shuffled(
    positions: Int64[np.ndarray, " n"], sizes: Int64[np.ndarray, " n"], keys: Words
) -> Int64[np.ndarray, " n"]:
    """The records at `positions` of endless, shuffled repetitions of sources.

    Each stretch of `size` positions is a permutation of 0..size-1 of its own. It is computed
    by a Feistel network over the smallest near-square grid that holds `size` cells; cells
    beyond `size` are walked through until one within is met.

    Args:
      positions: from 0, one for each wanted record.
      sizes: records of the source it is wanted from, each at least 1.
      keys: `shuffle_key` of that source.

    Returns:
      Indices from 0 to size - 1.
    """
    sizes = sizes.astype(np.uint64)
    epochs, cells = np.divmod(positions.astype(np.uint64), sizes)
    words = _hash(keys ^ epochs)
    rows = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    columns = (sizes + rows - np.uint64(1)) // rows
    cells = _permute(cells, rows, columns, words)
    while (outside := np.flatnonzero(cells >= sizes)).size:
        again = (array[outside] for array in (cells, rows, columns, words))
        cells[outside] = _permute(*again)
    return cells.astype(np.int64)


def _permute(cells: Words, rows: Words, columns: Words, words: Words) -> Words:
    """A permutation of each grid's cells: each half in turn is rotated by a hash of the other."""
    left, right = np.divmod(cells, columns)
    for step in range(ROUNDS):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        if step % 2:
            right = (right + _rotation(left, words)) % columns
        else:
            left = (left + _rotation(right, words)) % rows
    return left * columns + right


def _rotation(half: Words, words: Words) -> Words:
    mixed = (half ^ words) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x94D049BB133111EB)
    return mixed >> np.uint64(32)


class Mixture:
    """Deals records to sources in proportion to weights, as evenly as the weights allow.

    One period of the pattern is laid out once: `counts[s]` records of source s, equally
    spaced. Record k's source and its position within that source are then two look-ups.
    """

    def __init__(self, weights: Sequence[float]):
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        counts = np.maximum(1, np.rint(shares * RESOLUTION)).astype(np.int64)
        self.counts = counts // np.gcd.reduce(counts)
        source = np.repeat(np.arange(len(counts)), self.counts)
        rank = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((rank + 0.5) / self.counts[source], kind="stable")
        self.source, self.rank = source[order], rank[order]

    def deal(
        self, records: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(source of each record, its position among that source's records)."""
        period, slot = np.divmod(records, len(self.source))
        source = self.source[slot]
        return source, period * self.counts[source] + self.rank[slot]
