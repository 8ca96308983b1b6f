"""Attention over listed pages: copies of several pages are under way while others are attended to.

The list lies in scalar memory. A chunk is a fixed number of its entries; each listed page of it is
one contiguous copy of keys and one of values from the cache to VMEM, and the chunk is attended to
as one tile. The copies run ahead over the ends of lists, so a short list hides behind its
neighbours.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.dense_decode import pallas_tiles
from ratjax_kernels.pallas_call import LANES


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the kernel must know beside the shapes it sees.

    Attributes:
      page_size: slots of a page.
      rows: slots that a copy reads: a page, and what alignment adds.
      tile: copies start at multiples of it.
      slots: of the cache.
      chunk: pages of a tile.
      listed: entries of a list, a multiple of `chunk`.
      kv_heads: of all programs together.
    """

    page_size: int
    rows: int
    tile: int
    slots: int
    chunk: int
    listed: int
    kv_heads: int


def attend_kernel(
    layout, layer_ref, lengths_ref, sizes_ref, pages_ref, q_ref, times_ref, k_hbm, v_hbm,
    out_ref, k_buffer, v_buffer, semaphores,
):  # fmt: skip
    """The key/value heads of one program: q and out [heads, R, D], times [heads, R, listed]."""
    heads, queries, channels = q_ref.shape
    buffers = k_buffer.shape[0]
    batch, part = pl.program_id(0), pl.program_id(1)
    length, layer = lengths_ref[batch], layer_ref[0]
    rows, width = layout.rows, layout.chunk * layout.rows

    def lane(head):
        return batch * layout.kv_heads + part * heads + jnp.minimum(head, heads - 1)

    def chunks(head):
        return jnp.maximum(lax.div(sizes_ref[lane(head)] + layout.chunk - 1, layout.chunk), 1)

    def span(head, chunk, j):
        """Where a listed page is read from, and which of the rows read are its filled slots."""
        page = pages_ref[lane(head) * layout.listed + chunk * layout.chunk + j]
        begin = page * layout.page_size
        source = jnp.minimum(lax.div(begin, layout.tile) * layout.tile, layout.slots - rows)
        source = pl.multiple_of(source, layout.tile)
        low = begin - source
        high = jnp.minimum(begin + layout.page_size, length) - source
        return source, low, jnp.where(page >= 0, high, low)

    def each_copy(head, chunk, slot, do):
        def body(j, _):
            source, low, high = span(head, chunk, j)
            place = pl.multiple_of(j * rows, layout.tile)

            @pl.when(low < high)
            def _():
                for n, (cache, buffer) in enumerate(((k_hbm, k_buffer), (v_hbm, v_buffer))):
                    do(
                        pltpu.make_async_copy(
                            cache.at[layer, batch, part * heads + head, pl.ds(source, rows)],
                            buffer.at[slot, pl.ds(place, rows)],
                            semaphores.at[slot, n],
                        )
                    )

            return 0

        lax.fori_loop(0, layout.chunk, body, 0)

    def fetch(head, chunk, number):
        """Starts the copies of a chunk, if there is one; returns the next one's place."""

        @pl.when(head < heads)
        def _():
            each_copy(head, chunk, lax.rem(number, buffers), lambda copy: copy.start())

        last = chunk + 1 >= chunks(head)
        return jnp.where(last, head + 1, head), jnp.where(last, 0, chunk + 1)

    def clear(slot, j, low, high):
        """Zero weights must not meet what was never written, or written by nobody: NaN."""
        here = (slot, pl.ds(j * rows, rows))

        @pl.when((low > 0) | (high < rows))
        def _():
            row = lax.broadcasted_iota(jnp.int32, (rows, channels), 0)
            v = v_buffer[here].astype(jnp.float32)
            v = jnp.where((row >= low) & (row < high), v, 0.0)
            v_buffer[here] = v.astype(v_buffer.dtype)

    def times_of(head, chunk, slot):
        """How often each query counts each row of the chunk; clears the rows that nobody counts."""
        first = chunk * layout.chunk
        aligned = pl.multiple_of(lax.div(first, LANES) * LANES, LANES)
        listed = times_ref[head, :, pl.ds(aligned, LANES)]
        listed = pltpu.roll(listed, lax.rem(LANES - (first - aligned), LANES), 1)
        column = lax.broadcasted_iota(jnp.int32, (queries, width), 1)
        times = jnp.zeros((queries, width), jnp.float32)
        for j in range(layout.chunk):
            _, low, high = span(head, chunk, j)
            clear(slot, j, low, high)
            inside = (column >= j * rows + low) & (column < j * rows + high)
            times = jnp.where(inside, listed[:, j : j + 1], times)
        return times

    def one_head(head, carry):
        q = q_ref[head]

        def one_chunk(chunk, carry):
            number, ahead, state = carry
            ahead = fetch(*ahead, number + buffers - 1)
            slot = lax.rem(number, buffers)
            each_copy(head, chunk, slot, lambda copy: copy.wait())
            times = times_of(head, chunk, slot)
            k, v = k_buffer[slot], v_buffer[slot]
            state = pallas_tiles.step(q, k, v, times, state, channels**-0.5)
            return number + 1, ahead, state

        number, ahead = carry
        state = pallas_tiles.start(queries, channels)
        number, ahead, state = lax.fori_loop(0, chunks(head), one_chunk, (number, ahead, state))
        out_ref[head] = pallas_tiles.finish(state).astype(out_ref.dtype)
        return number, ahead

    ahead = jnp.int32(0), jnp.int32(0)
    ahead = lax.fori_loop(0, buffers - 1, lambda number, ahead: fetch(*ahead, number), ahead)
    lax.fori_loop(0, heads, one_head, (jnp.int32(0), ahead))
