"""Turning "the blocks of each query" into "the queries of each block", by counting.

The R query heads of a key/value head are one sequence of N = T R rows, row t R + r: a block's list
then serves its keys and values once for all of them. Entry row K + slot names a row and a place in
its list. Chunks of entries count their blocks, the counts are summed up along the chunks, and each
chunk then knows where its entries go: lists are in the order of rows, whatever runs when.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def count_kernel(
    ids_ptr, clean_ptr, counts_ptr, own_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEPT: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Sorts out ids [B, H, T, KEPT] and counts what is left.

    Writes clean [S, N, KEPT]: -1 for blocks listed twice or not begun; adds to counts
    [S, chunks, P], and to own [S, P] the rows of a block that list it.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    every: tl.constexpr = LENGTH * GROUP * KEPT
    stream = tl.program_id(1).to(tl.int64)
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < every
    row, slot = entry // KEPT, entry % KEPT
    position = row // GROUP
    current = position // BLOCK_SIZE
    ids_ptr += stream * every  # [GROUP, T, KEPT] of this stream
    source = ((row % GROUP) * LENGTH + position) * KEPT
    block = tl.load(ids_ptr + source + slot, mask=inside, other=-1)
    real = (block >= 0) & (block <= current)
    for earlier in range(KEPT - 1):
        other = tl.load(ids_ptr + source + earlier, mask=inside, other=-1)
        real = real & ((other != block) | (earlier >= slot))
    tl.store(clean_ptr + stream * every + entry, tl.where(real, block, -1), mask=inside)
    counts_ptr += (stream * tl.num_programs(0) + tl.program_id(0)) * BLOCKS
    tl.atomic_add(counts_ptr + block, 1, mask=real, sem="relaxed")
    own_ptr += stream * BLOCKS
    tl.atomic_add(own_ptr + current, 1, mask=real & (block == current), sem="relaxed")


@triton.jit
@no_type_check
def sum_kernel(
    counts_ptr, before_ptr, totals_ptr,
    CHUNKS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """counts [S, chunks, P] -> sums of the chunks before each, the same shape; all: [S, P]."""
    stream = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * COLS + tl.arange(0, COLS)
    known = block < BLOCKS
    counts_ptr += stream * CHUNKS * BLOCKS
    before_ptr += stream * CHUNKS * BLOCKS
    total = tl.zeros((COLS,), tl.int32)
    for start in range(0, CHUNKS, ROWS):
        chunk = start + tl.arange(0, ROWS)
        at = chunk[:, None] * BLOCKS + block[None, :]
        inside = (chunk < CHUNKS)[:, None] & known[None, :]
        count = tl.load(counts_ptr + at, mask=inside, other=0)
        before = total[None, :] + tl.cumsum(count, axis=0) - count
        tl.store(before_ptr + at, before, mask=inside)
        total += tl.sum(count, axis=0)
    tl.store(totals_ptr + stream * BLOCKS + block, total, mask=known)


@triton.jit
@no_type_check
def _starts(ptr, block, sizes, BLOCKS: tl.constexpr):
    """Stores [P + 1] the sums of `sizes` before each block, and of all."""
    ends = tl.cumsum(sizes, axis=0)
    tl.store(ptr + block, ends - sizes, mask=block < BLOCKS)
    tl.store(ptr + BLOCKS, tl.sum(sizes, axis=0))


@triton.jit
@no_type_check
def plan_kernel(
    totals_ptr, own_ptr, entries_ptr, forward_ptr, backward_ptr, shared_ptr,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Where each block's entries, its forward and its backward work items begin: each [S, P + 1].

    Forward leaves out block 0 and every block's own queries. Blocks whose backward takes several
    items number those items in `shared`.
    """
    stream = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, WIDTH)
    known = block < BLOCKS
    total = tl.load(totals_ptr + stream * BLOCKS + block, mask=known, other=0)
    own = tl.load(own_ptr + stream * BLOCKS + block, mask=known, other=0)
    at = stream * (BLOCKS + 1)
    _starts(entries_ptr + at, block, total, BLOCKS)
    visitors = tl.where(block == 0, 0, total - own)
    _starts(forward_ptr + at, block, (visitors + FORWARD - 1) // FORWARD, BLOCKS)
    items = tl.maximum((total + BACKWARD - 1) // BACKWARD, 1)  # an empty list still writes zeros
    items = tl.where(known, items, 0)
    _starts(backward_ptr + at, block, items, BLOCKS)
    _starts(shared_ptr + at, block, tl.where(items > 1, items, 0), BLOCKS)


@triton.jit
@no_type_check
def fill_kernel(
    clean_ptr, before_ptr, starts_ptr, lists_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    BLOCKS: tl.constexpr, KEPT: tl.constexpr, ENTRIES: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Writes the entries: lists [S, N KEPT]."""
    every: tl.constexpr = LENGTH * (HEADS // KV_HEADS) * KEPT
    stream = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ENTRIES
    entry = first + tl.arange(0, ENTRIES)
    clean_ptr += stream * every
    block = tl.load(clean_ptr + entry, mask=entry < every, other=-1)
    listed = block >= 0
    # How many entries of the chunk list the same block before: all pairs, a piece at a time.
    counts = tl.zeros((PIECE, ENTRIES), tl.int32)
    for start in range(0, ENTRIES, PIECE):
        earlier = first + start + tl.arange(0, PIECE)
        other = tl.load(clean_ptr + earlier, mask=earlier < every, other=-1)
        same = (other[:, None] == block[None, :]) & (earlier[:, None] < entry[None, :])
        counts += same.to(tl.int32)
    rank = tl.sum(counts, axis=0)
    before_ptr += (stream * tl.num_programs(0) + tl.program_id(0)) * BLOCKS
    at = tl.load(starts_ptr + stream * (BLOCKS + 1) + block, mask=listed, other=0)
    at += tl.load(before_ptr + block, mask=listed, other=0)
    tl.store(lists_ptr + stream * every + at + rank, entry, mask=listed)
