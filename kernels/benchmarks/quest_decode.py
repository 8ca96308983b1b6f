"""Times Quest's decode step against its bytes and against a dense step over the same cache.

A step appends a token and widens its page's bounds, scores the pages, selects, and attends. It is
timed inside one program of many steps, where the cache is updated in place as in generation. The
floor is one read of all page bounds and of the selected pages' keys and values at the measured read
bandwidth; with grouped heads each page that any head of the group selects counts once.
"""

import jax
import numpy as np
import timing
from absl import app, flags
from caches import queries_and_cache, random

from ratjax_kernels import append, dense_decode, page_bounds, quest_decode

_TARGET = flags.DEFINE_string("target", "quest_decode.json", "Where the results go.")

HEADS, CHANNELS = 32, 128
# Batch, slots, key/value heads, page size, one page in how many is read.
CASES = {
    "16x32768-page64-1/16": (16, 32768, 32, 64, 16),
    "16x32768-page64-1/8": (16, 32768, 32, 64, 8),
    "16x32768-page64-1/4": (16, 32768, 32, 64, 4),
    "16x32768-page16-1/16": (16, 32768, 32, 16, 16),
    "16x32768-page16-1/8": (16, 32768, 32, 16, 8),
    "16x32768-page16-1/4": (16, 32768, 32, 16, 4),
    "16x32768-page64-1/16-kv8": (16, 32768, 8, 64, 16),
    "4x131072-page64-1/16": (4, 131072, 32, 64, 16),
    "4x131072-page16-1/16": (4, 131072, 32, 16, 16),
    "1x32768-page64-1/16": (1, 32768, 32, 64, 16),
    "1x32768-page16-1/16": (1, 32768, 32, 16, 16),
}


def step(carry, q, lengths, new, page_size, pages):
    """One token: (cache, bounds, what was read before) -> the same after it."""
    k, v, low, high, _, _ = carry
    k, v, low, high = append(k, v, lengths - 1, *new, (low, high), page_size)
    return k, v, low, high, *quest_decode(q, k, v, lengths, low, high, page_size, pages)


def measure(batch, slots, kv_heads, page_size, fraction):
    """(milliseconds of a sparse step, of a dense one, bytes of the sparse one's floor)."""
    q, k, v, lengths = queries_and_cache(batch, slots, HEADS, kv_heads, CHANNELS)
    dense = timing.chained_milliseconds(dense_decode, q + 0, k, v, lengths)  # q + 0 is given up
    pages = slots // page_size // fraction
    low, high = jax.jit(page_bounds, static_argnums=2)(k, lengths, page_size)
    new = [random(jax.random.key(i), (batch, 1, kv_heads, CHANNELS)) for i in (1, 2)]
    out, ids = jax.jit(quest_decode, static_argnums=(6, 7))(
        q, k, v, lengths, low, high, page_size, pages
    )
    groups = np.asarray(ids).reshape(batch * kv_heads, -1)
    read = sum(len(np.unique(group)) for group in groups) * page_size * CHANNELS * 2 * 2
    read += low.nbytes + high.nbytes
    carry = (k, v, low, high, out, ids)
    del k, v, low, high
    sparse = timing.chained_milliseconds(
        lambda carry, *args: step(carry, *args, page_size, pages), carry, q, lengths, new
    )
    return sparse, dense, read


def main(_):
    bandwidth = timing.read_bandwidth()
    rows = []
    for case, (batch, slots, kv_heads, page_size, fraction) in CASES.items():
        sparse, dense, read = measure(batch, slots, kv_heads, page_size, fraction)
        floor = 1e3 * read / bandwidth
        shape = (batch, slots, HEADS, kv_heads, CHANNELS)
        # Two products with the bounds of each page, two with each key and value read.
        seen = slots // page_size + slots // fraction
        more = {"bytes": read, "flops": 4 * batch * HEADS * CHANNELS * seen}
        rows.append(
            timing.row(
                "quest_decode", case, shape, sparse, floor, "our dense_decode", dense, **more
            )
        )
    timing.finish(rows, {"read_bytes_per_second": bandwidth}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
