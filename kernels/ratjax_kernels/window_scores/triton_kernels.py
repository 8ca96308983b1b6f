"""SnapKV's vote on CUDA: two walks over the keys, because a probability needs its row's sum first.

All query heads of a key/value head and all queries of the window form the rows of one matrix, so
that a key is loaded once for all of them. `totals_kernel` gives each stretch of keys one number a
row, the logarithm of its summed exponentials; `merge_kernel` adds these up; `votes_kernel` scores
again, normalises and sums over the rows. There the keys stand along the matrix unit's rows, so that
a sum over queries mostly stays within a thread.

`no_type_check` keeps import hooks that wrap functions away from what Triton reads as source.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _load_queries(
    q_ptr, batch, kv_head, row, length,
    WINDOW: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Rows (head of the group, query) of a [B, W, H, D] array; zero where they do not count."""
    head, query = row // WINDOW, row % WINDOW
    counts = (row < GROUP * WINDOW) & (length - WINDOW + query >= 0)
    column = tl.arange(0, PADDED)
    at = (query * HEADS + kv_head * GROUP + head) * CHANNELS
    base = batch * WINDOW * HEADS * CHANNELS
    known = counts[:, None] & (column < CHANNELS)[None, :]
    return tl.load(q_ptr + base + at[:, None] + column[None, :], mask=known, other=0.0), counts


@triton.jit
@no_type_check
def _load_keys(
    k_ptr, at, length, MASKED: tl.constexpr, STRIDE: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, PADDED)
    where = k_ptr + at.to(tl.int64)[:, None] * STRIDE + column[None, :]
    if MASKED:
        known = (at < length)[:, None] & (column < CHANNELS)[None, :]
        k = tl.load(where, mask=known, other=0.0)
    elif CHANNELS == PADDED:
        k = tl.load(where)
    else:
        k = tl.load(where, mask=(column < CHANNELS)[None, :], other=0.0)
    return k


@triton.jit
@no_type_check
def _add_up(
    q, k, seen, MASKED: tl.constexpr, top, total,
    LOG2_SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    # `top` is finite from the start: rows that have seen nothing yet make no NaN.
    higher = tl.maximum(top, tl.max(scores, 1) * LOG2_SCALE)
    weights = tl.exp2(scores * LOG2_SCALE - higher[:, None])
    return higher, total * tl.exp2(top - higher) + tl.sum(weights, 1)


@triton.jit
@no_type_check
def totals_kernel(
    q_ptr, k_ptr, lengths_ptr, lse_ptr,
    SLOTS: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, LOG2_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr, STRETCH: tl.constexpr,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    # Blocks of rows that read the same keys are neighbours: the second finds them in the cache.
    block, rest = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    split, lane = rest % SPLITS, rest // SPLITS
    batch, kv_head = (lane // KV_HEADS).to(tl.int64), lane % KV_HEADS
    length = tl.minimum(tl.load(lengths_ptr + batch), SLOTS)
    row = block * ROWS + tl.arange(0, ROWS)
    q, counts = _load_queries(
        q_ptr, batch, kv_head, row, length, WINDOW, HEADS, GROUP, CHANNELS, PADDED
    )
    reach = length - WINDOW + row % WINDOW
    stride: tl.constexpr = KV_HEADS * CHANNELS
    k_ptr += batch * SLOTS * stride + kv_head * CHANNELS

    top = tl.full((ROWS,), -3.0e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    begin = split * STRETCH
    end = tl.minimum(begin + STRETCH, length)
    # Every query that counts sees all keys before the window.
    full = begin + tl.maximum(tl.minimum(length - WINDOW, end) - begin, 0) // COLS * COLS
    every = tl.full((ROWS, COLS), True, tl.int1)
    column = tl.arange(0, COLS)
    for start in range(begin, full, COLS):
        k = _load_keys(k_ptr, start + column, length, False, stride, CHANNELS, PADDED)
        top, total = _add_up(q, k, every, False, top, total, LOG2_SCALE, PRECISION)
    for start in range(full, end, COLS):
        at = start + column
        k = _load_keys(k_ptr, at, end, True, stride, CHANNELS, PADDED)
        seen = (at[None, :] <= reach[:, None]) & (at < end)[None, :]
        top, total = _add_up(q, k, seen, True, top, total, LOG2_SCALE, PRECISION)
    some = counts & (total > 0)
    lse = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    at = (lane * SPLITS + split).to(tl.int64) * (BLOCKS * ROWS) + row
    tl.store(lse_ptr + at, lse)


@triton.jit
@no_type_check
def merge_kernel(
    parts_ptr, lse_ptr, SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr,
    ALL_ROWS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """log2 of the summed exponentials over all stretches; +inf where a query counts for nothing."""
    lane, block = tl.program_id(0), tl.program_id(1)
    row = block * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, PADDED_SPLITS)
    at = (lane * SPLITS + split).to(tl.int64)[:, None] * ALL_ROWS + row[None, :]
    known = (split < SPLITS)[:, None] & (row < ALL_ROWS)[None, :]
    parts = tl.load(parts_ptr + at, mask=known, other=float("-inf"))
    top = tl.maximum(tl.max(parts, 0), -3.0e38)
    total = tl.sum(tl.exp2(parts - top[None, :]), 0)
    some = total > 0
    lse = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("inf"))
    tl.store(lse_ptr + lane * ALL_ROWS + row, lse, mask=row < ALL_ROWS)


@triton.jit
@no_type_check
def votes_kernel(
    q_ptr, k_ptr, lengths_ptr, lse_ptr, votes_ptr,
    SLOTS: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, LOG2_SCALE: tl.constexpr,
    PRECISION: tl.constexpr, SPLITS: tl.constexpr, STRETCH: tl.constexpr,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    block, rest = tl.program_id(0) % BLOCKS, tl.program_id(0) // BLOCKS
    split, lane = rest % SPLITS, rest // SPLITS
    batch, kv_head = (lane // KV_HEADS).to(tl.int64), lane % KV_HEADS
    length = tl.minimum(tl.load(lengths_ptr + batch), SLOTS)
    row = block * COLS + tl.arange(0, COLS)
    q, counts = _load_queries(
        q_ptr, batch, kv_head, row, length, WINDOW, HEADS, GROUP, CHANNELS, PADDED
    )
    q = tl.trans(q)
    lse = tl.load(lse_ptr + lane * (BLOCKS * COLS) + row)
    reach = tl.where(counts, length - WINDOW + row % WINDOW, -1)
    stride: tl.constexpr = KV_HEADS * CHANNELS
    k_ptr += batch * SLOTS * stride + kv_head * CHANNELS
    votes_ptr += ((batch * BLOCKS + block) * KV_HEADS + kv_head) * SLOTS

    begin = split * STRETCH
    limit = tl.minimum(begin + STRETCH, SLOTS)
    end = tl.minimum(limit, length)
    full = begin + tl.maximum(tl.minimum(length - WINDOW, end) - begin, 0) // ROWS * ROWS
    slot = tl.arange(0, ROWS)
    for start in range(begin, full, ROWS):
        k = _load_keys(k_ptr, start + slot, length, False, stride, CHANNELS, PADDED)
        scores = tl.dot(k, q, input_precision=PRECISION)
        votes = tl.sum(tl.exp2(scores * LOG2_SCALE - lse[None, :]), 1)
        tl.store(votes_ptr + start + slot, votes * (1.0 / GROUP))
    # The tile that reaches into the window, and slots behind the prompt.
    for start in tl.range(full, end, ROWS, num_stages=1):
        at = start + slot
        k = _load_keys(k_ptr, at, length, True, stride, CHANNELS, PADDED)
        scores = tl.dot(k, q, input_precision=PRECISION) * LOG2_SCALE - lse[None, :]
        scores = tl.where(at[:, None] <= reach[None, :], scores, float("-inf"))
        votes = tl.where(at < length, tl.sum(tl.exp2(scores), 1) * (1.0 / GROUP), 0.0)
        tl.store(votes_ptr + at, votes, mask=at < limit)
    rest = full + tl.maximum(end - full + ROWS - 1, 0) // ROWS * ROWS
    for start in range(rest, limit, ROWS):
        at = start + slot
        tl.store(votes_ptr + at, tl.zeros((ROWS,), tl.float32), mask=at < limit)
