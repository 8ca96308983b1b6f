"""The launches that `triton.py` is made of: one function a kernel, with its tiling."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ratjax_kernels.block_prefill import (
    triton_backward,
    triton_forward,
    triton_lists,
    triton_select,
)
from ratjax_kernels.triton_call import capability, launch, power_of_two


class Tiles(NamedTuple):
    """How work is cut up.

    Attributes:
      rows: queries of a tile.
      warps: warps of a program.
      stages: tiles in flight.
      segment: entries of a work item, where there are work items.
    """

    rows: int
    warps: int
    stages: int
    segment: int = 0


# The fastest of those measured on an H100, with 128 channels in bfloat16.
VISIT = Tiles(rows=64, warps=4, stages=3, segment=1024)
LOCAL = Tiles(rows=64, warps=4, stages=1)
MERGE = Tiles(rows=32, warps=4, stages=1)
GRADIENTS = Tiles(rows=64, warps=8, stages=3, segment=4096)
QUERY = Tiles(rows=16, warps=4, stages=1)
LISTS = Tiles(rows=128, warps=4, stages=1)  # rows: entries of a chunk
# The same for blocks of at most 64 positions.
NARROW_VISIT = Tiles(rows=64, warps=4, stages=3)
NARROW_GRADIENTS = Tiles(rows=64, warps=4, stages=2)
# Where numbers are wide or heads large, what fits.
SMALL = Tiles(rows=32, warps=8, stages=1)


def precision(dtype) -> str:
    """How matrix units multiply: float32 as three products of narrower parts."""
    return "tf32x3" if dtype == jnp.float32 else "tf32"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the kernels must know of their arrays.

    A stream is a key/value head of a batch element, with the rows of all its query heads.
    """

    batch: int
    length: int
    heads: int
    kv_heads: int
    channels: int
    block_size: int
    kept: int
    dtype: jnp.dtype

    @property
    def streams(self) -> int:
        return self.batch * self.kv_heads

    @property
    def rows(self) -> int:
        return self.length * (self.heads // self.kv_heads)

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_size)

    @property
    def keys(self) -> int:
        return power_of_two(self.block_size, 16)

    def tiles(self, tiles: Tiles, narrow: Tiles | None = None) -> Tiles:
        if self.dtype == jnp.float32 or self.channels > 128:
            return SMALL._replace(segment=tiles.segment)
        if narrow is not None and self.keys <= 64:
            return narrow._replace(segment=tiles.segment)
        return tiles

    def items(self, tiles: Tiles) -> int:
        """The most work items that a stream's lists can make; an empty list may make one."""
        return self.rows * self.kept // tiles.segment + self.blocks

    def shared(self, tiles: Tiles) -> int:
        """The most items of lists that make several: all but the last of each are full."""
        return 2 * self.rows * self.kept // tiles.segment

    def shape(self, *sizes, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((self.batch, self.kv_heads, *sizes), dtype)

    @property
    def q_shape(self):
        shape = (self.batch, self.length, self.heads, self.channels)
        return jax.ShapeDtypeStruct(shape, self.dtype)

    @property
    def k_shape(self):
        shape = (self.batch, self.length, self.kv_heads, self.channels)
        return jax.ShapeDtypeStruct(shape, self.dtype)

    def launch(self, kernel, inputs, outputs, grid, tiles: Tiles, **more):
        """Launches `kernel` with those of the constants here that it has."""
        constants = {
            "BATCH": self.batch,
            "LENGTH": self.length,
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "CHANNELS": self.channels,
            "BLOCKS": self.blocks,
            "BLOCK_SIZE": self.block_size,
            "KEPT": self.kept,
            "SCALE": math.log2(math.e) * self.channels**-0.5,
            "NATURAL_SCALE": self.channels**-0.5,
            "WIDTH": power_of_two(self.blocks, 16),
            "KEYS": self.keys,
            "LANES": power_of_two(self.channels, 16),
            "PRECISION": precision(self.dtype),
            "ROWS": tiles.rows,
            "SEGMENT": tiles.segment,
        }
        names = set(kernel.arg_names)
        constants = {name: value for name, value in constants.items() if name in names}
        return launch(
            kernel, inputs, outputs, grid,
            num_warps=tiles.warps, num_stages=tiles.stages, **constants | more,
        )  # fmt: skip


def has_tensor_memory() -> bool:
    """Whether products are summed in a memory of their own, as from compute capability 10 on."""
    return float(capability() or 0) >= 10


class Lists(NamedTuple):
    """For every stream, [B, G, ...] int32; see `triton_lists`."""

    entries: jax.Array
    starts: jax.Array
    own: jax.Array
    forward_items: jax.Array
    backward_items: jax.Array
    shared_items: jax.Array


def select(block_size, kept, first, q, parts, *, tiles: Tiles | None = None):
    """The chosen blocks, [B, H, T, kept]; `parts` [B, G, PARTS, P, D] add up to the means."""
    batch, length, heads, channels = q.shape
    kv_heads, _, blocks, _ = parts.shape[1:]
    width = power_of_two(blocks, 16)
    if tiles is None:
        wide = width > 256
        tiles = Tiles(rows=64 if width <= 512 else 32, warps=8 if wide else 4, stages=2)
    lanes = power_of_two(channels, 16)
    (ids,) = launch(
        triton_select.select_kernel,
        (q, parts),
        (jax.ShapeDtypeStruct((batch, heads, length, kept), jnp.int32),),
        grid=(-(-length // tiles.rows), batch * heads),
        LENGTH=length,
        HEADS=heads,
        GROUP=heads // kv_heads,
        CHANNELS=channels,
        BLOCKS=blocks,
        BLOCK_SIZE=block_size,
        KEPT=kept,
        FIRST=int(first),
        PARTS=parts.shape[2],
        PRECISION=precision(q.dtype),
        ROWS=tiles.rows,
        WIDTH=width,
        LANES=lanes,
        DEPTH=min(lanes, max(16, 2**15 // q.dtype.itemsize // width)),
        SLOTS=power_of_two(kept, 2),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return ids


def make_lists(sizes: Sizes, block_ids) -> tuple[jax.Array, Lists]:
    """What `block_ids` [B, H, T, K] lists, once each, [B, G, N, K]; and the lists of all blocks."""
    run = functools.partial(sizes.launch, tiles=LISTS)
    chunks = -(-sizes.rows * sizes.kept // LISTS.rows)
    cut = {"ENTRIES": LISTS.rows}
    table, per_block = sizes.shape(chunks, sizes.blocks), sizes.shape(sizes.blocks)
    ids, counts, own = run(
        triton_lists.count_kernel, (block_ids,),
        (sizes.shape(sizes.rows, sizes.kept), table, per_block),
        (chunks, sizes.streams), zeroed=(1, 2), **cut,
    )  # fmt: skip
    before, totals = run(
        triton_lists.sum_kernel, (counts,), (table, per_block),
        (-(-sizes.blocks // 16), sizes.streams), CHUNKS=chunks, ROWS=128, COLS=16,
    )  # fmt: skip
    starts, *items = run(
        triton_lists.plan_kernel, (totals, own), (sizes.shape(sizes.blocks + 1),) * 4,
        (sizes.streams,), FORWARD=VISIT.segment, BACKWARD=GRADIENTS.segment,
    )  # fmt: skip
    (entries,) = run(
        triton_lists.fill_kernel, (ids, before, starts),
        (sizes.shape(sizes.rows * sizes.kept),),
        (chunks, sizes.streams), PIECE=16, **cut,
    )  # fmt: skip
    return ids, Lists(entries, starts, own, *items)


def visit(sizes: Sizes, q, k, v, lists: Lists):
    """What the listed blocks leave at the entries: averages [B, G, N, K, D], log-sum-exps."""
    entries = (sizes.rows, sizes.kept)
    return sizes.launch(
        triton_forward.visit_kernel,
        (q, k, v, lists.entries, lists.own, lists.starts, lists.forward_items),
        (
            sizes.shape(*entries, sizes.channels, dtype=sizes.dtype),
            sizes.shape(*entries, dtype=jnp.float32),
        ),
        (sizes.streams * sizes.items(VISIT),),
        sizes.tiles(VISIT, NARROW_VISIT),
        ITEMS=sizes.items(VISIT),
    )


def local(sizes: Sizes, q, k, v, ids):
    """Attention to own block and block 0: [B, T, H, D], and its log-sum-exp [B, G, N]."""
    tiles = sizes.tiles(LOCAL)
    return sizes.launch(
        triton_forward.local_kernel,
        (q, k, v, ids),
        (sizes.q_shape, sizes.shape(sizes.rows, dtype=jnp.float32)),
        (-(-sizes.rows // tiles.rows), sizes.streams),
        tiles,
    )


def merge(sizes: Sizes, ids, parts, part_lse, local_out, local_lse):
    """The output [B, T, H, D] and its log-sum-exp [B, G, N]."""
    return sizes.launch(
        triton_forward.merge_kernel,
        (ids, parts, part_lse, local_out, local_lse),
        (sizes.q_shape, sizes.shape(sizes.rows, dtype=jnp.float32)),
        (-(-sizes.rows // MERGE.rows), sizes.streams),
        MERGE,
    )


def gradients(sizes: Sizes, q, k, v, d_out, lse, delta, lists: Lists):
    """dk, dv, the queries' gradients at the entries, and the sums of long lists' segments."""
    shared = max(sizes.shared(GRADIENTS), 1)
    sums = sizes.shape(shared, sizes.keys, sizes.channels, dtype=jnp.float32)
    parts = sizes.shape(sizes.rows, sizes.kept, sizes.channels, dtype=sizes.dtype)
    tiles = sizes.tiles(GRADIENTS, NARROW_GRADIENTS)
    if has_tensor_memory():
        tiles = tiles._replace(rows=32)  # five sums of 64 rows need more than its 512 columns
    return sizes.launch(
        triton_backward.gradients_kernel,
        (q, k, v, d_out, lse, delta, lists.entries, lists.starts, lists.backward_items,
         lists.shared_items),
        (sizes.k_shape, sizes.k_shape, parts, sums, sums),
        (sizes.streams * sizes.items(GRADIENTS),),
        tiles,
        ITEMS=sizes.items(GRADIENTS),
        SHARED=shared,
    )  # fmt: skip


def add_segments(sizes: Sizes, dk, dv, dk_sums, dv_sums, lists: Lists):
    """dk and dv with those of the long lists filled in."""
    if sizes.rows <= GRADIENTS.segment:
        return dk, dv
    return sizes.launch(
        triton_backward.total_kernel,
        (dk_sums, dv_sums, lists.shared_items, dk, dv),
        (sizes.k_shape, sizes.k_shape),
        (sizes.blocks, -(-sizes.keys // 16), sizes.streams),
        Tiles(rows=16, warps=4, stages=1),
        aliases={3: 0, 4: 1},
        SHARED=dk_sums.shape[2],
    )


def add_entries(sizes: Sizes, parts, ids):
    """dq [B, T, H, D]."""
    (dq,) = sizes.launch(
        triton_backward.query_kernel,
        (parts, ids),
        (sizes.q_shape,),
        (-(-sizes.rows // QUERY.rows), sizes.streams),
        QUERY,
    )
    return dq
