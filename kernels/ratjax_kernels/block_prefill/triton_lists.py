"""Turning "the blocks of each query" into "the queries of each block", by counting.

The R query heads of a key/value head are one sequence of N = T R rows, row t R + r: a block's list
then serves its keys and values once for all of them. An entry row K + slot names both the row and
the place in its list. Chunks of rows count their blocks, the counts are summed up along the rows,
and each chunk then knows where its entries go: lists are in the order of rows, whatever runs when.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _slots(ids_ptr, row, block, inside, KEPT: tl.constexpr):
    """[rows, blocks]: the slot in which a row lists a block, -1 where it does not."""
    slots = tl.full((row.shape[0], block.shape[0]), -1, tl.int32)
    for slot in range(KEPT):
        listed = tl.load(ids_ptr + row * KEPT + slot, mask=inside, other=-1)
        slots = tl.where(listed[:, None] == block[None, :], slot, slots)
    return slots


@triton.jit
@no_type_check
def count_kernel(
    ids_ptr, counts_ptr,
    LENGTH: tl.constexpr, BLOCKS: tl.constexpr, KEPT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """ids [S, N, KEPT], each block at most once a row -> counts [S, chunks, P]."""
    chunks: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    chunk, stream = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = chunk * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1) * COLS + tl.arange(0, COLS)
    slots = _slots(ids_ptr + stream * (LENGTH * KEPT), row, block, row < LENGTH, KEPT)
    count = tl.sum((slots >= 0).to(tl.int32), axis=0)
    counts_ptr += (stream * chunks + chunk) * BLOCKS
    tl.store(counts_ptr + block, count, mask=block < BLOCKS)


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
    ids_ptr, before_ptr, entries_ptr, lists_ptr,
    LENGTH: tl.constexpr, BLOCKS: tl.constexpr, KEPT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Writes the entries: lists [S, N KEPT]."""
    chunks: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    chunk, stream = tl.program_id(0), tl.program_id(2).to(tl.int64)
    index = tl.arange(0, ROWS)
    row = chunk * ROWS + index
    block = tl.program_id(1) * COLS + tl.arange(0, COLS)
    known = block < BLOCKS
    slots = _slots(ids_ptr + stream * (LENGTH * KEPT), row, block, row < LENGTH, KEPT)
    listed = slots >= 0
    # Running counts as a product with a triangle of ones: exact, and the matrix units do it.
    earlier = (index[None, :] < index[:, None]).to(tl.float16)
    rank = tl.dot(earlier, listed.to(tl.float16)).to(tl.int32)
    start = tl.load(entries_ptr + stream * (BLOCKS + 1) + block, mask=known, other=0)
    before_ptr += (stream * chunks + chunk) * BLOCKS
    start += tl.load(before_ptr + block, mask=known, other=0)
    lists_ptr += stream * (LENGTH * KEPT)
    tl.store(lists_ptr + start[None, :] + rank, row[:, None] * KEPT + slots, mask=listed)
