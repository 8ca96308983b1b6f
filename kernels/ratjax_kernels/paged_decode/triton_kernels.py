"""Attention over listed pages, and the list itself: Quest's selection inside the attending program.

Every split of a head repeats the selection from the head's scores, a few kilobytes that lie in the
cache, and lists its own share of the chosen pages: that costs less than a launch of its own would.
Programs are numbered with the heads innermost, so heads that share keys and chose the same pages
find them in the cache.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.dense_decode.tiles import (
    finish,
    matrix_step,
    vector_collapse,
    vector_step,
)


@triton.jit
@no_type_check
def ordered(score):
    """Integers in the order of finite numbers; what is infinite counts as the largest number."""
    largest: tl.constexpr = 3.4028234663852886e38
    score = tl.minimum(tl.maximum(score, -largest), largest)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
@no_type_check
def select(
    scores_ptr, ids_ptr, length, low,
    P: tl.constexpr, PP: tl.constexpr, K: tl.constexpr, SHARE: tl.constexpr, SHP: tl.constexpr,
    PAGE: tl.constexpr, FIRST: tl.constexpr, CURRENT: tl.constexpr,
):  # fmt: skip
    """Lists the `SHARE` pages from rank `low` on, ascending, then -1.

    Forced pages come first, then higher scores, then lower indices. The K-th best value is found
    bit by bit; pages above it are in, and of those that equal it the first ones.
    """
    # The extremes of int32, which no score has: forced, and not a candidate.
    MOST: tl.constexpr = 2147483647
    LEAST: tl.constexpr = -2147483648
    page = tl.arange(0, PP)
    current = tl.where(length > 0, (length - 1) // PAGE, -1)
    value = ordered(tl.load(scores_ptr + page, mask=page < P, other=0.0))
    if FIRST:
        value = tl.where(page == 0, MOST, value)
    if CURRENT:
        value = tl.where(page == current, MOST, value)
    value = tl.where((page <= current) & (page < P), value, LEAST)
    bound = tl.where(tl.sum((value >= 0).to(tl.int32), axis=0) >= K, 0, LEAST)
    for step in range(31):
        higher = bound | (1 << (30 - step))
        bound = tl.where(tl.sum((value >= higher).to(tl.int32), axis=0) >= K, higher, bound)
    above = (value > bound).to(tl.int32)
    equal = ((value == bound) & (value > LEAST)).to(tl.int32)
    room = K - tl.sum(above, axis=0)
    equal_rank = tl.cumsum(equal, axis=0)
    chosen = (above == 1) | ((equal == 1) & (equal_rank <= room))
    rank = tl.cumsum(above, axis=0) + tl.minimum(equal_rank, room) - 1
    found = tl.sum(chosen.to(tl.int32), axis=0)
    mine = chosen & (rank >= low) & (rank < low + SHARE)
    tl.store(ids_ptr + rank, page, mask=mine)
    blank = low + tl.arange(0, SHP)
    tl.store(ids_ptr + blank, -1, mask=(blank >= found) & (blank < low + SHARE) & (blank < K))
    tl.debug_barrier()  # other threads of this program read what was listed
    return found


@triton.jit
@no_type_check
def slots_of_tile(ids_ptr, at, low, high, row, PAGE: tl.constexpr, N: tl.constexpr):
    """The slots of rows `at + row` of the listed pages from rank `low` on; -1: none."""
    if PAGE % N == 0:
        page = tl.load(ids_ptr + low + at // PAGE)
        slot = page * PAGE + at % PAGE + row
        return tl.where(page >= 0, slot, -1)
    else:
        rank = low + (at + row) // PAGE
        page = tl.load(ids_ptr + rank, mask=rank < high, other=-1)
        return tl.where(page >= 0, page * PAGE + (at + row) % PAGE, -1)


@triton.jit
@no_type_check
def vector_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, layer_ptr, source_ptr, counter_in_ptr,
    out_ptr, ids_out_ptr, part_ptr, stats_ptr, counter_ptr,
    BATCH: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SCALE: tl.constexpr, PAGE: tl.constexpr,
    K: tl.constexpr, SHARE: tl.constexpr, SHP: tl.constexpr,
    SPLITS: tl.constexpr, SP: tl.constexpr, N: tl.constexpr, PIPELINE: tl.constexpr,
    SELECT: tl.constexpr, P: tl.constexpr, PP: tl.constexpr,
    FIRST: tl.constexpr, CURRENT: tl.constexpr,
):  # fmt: skip
    """One head a program; `source` holds its scores (SELECT) or its list."""
    head, split = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS) % SPLITS
    batch = tl.program_id(0) // (HEADS * SPLITS)
    group = batch.to(tl.int64) * HEADS + head
    length = tl.minimum(tl.load(lengths_ptr + batch), SLOTS)
    low = split * SHARE
    high = tl.minimum(low + SHARE, K)
    if SELECT:
        ids_ptr = ids_out_ptr + group * K
        found = select(
            source_ptr + group * P, ids_ptr, length, low, P, PP, K, SHARE, SHP, PAGE, FIRST, CURRENT
        )
        high = tl.minimum(high, found)
    else:
        ids_ptr = source_ptr + group * K
    row, channel = tl.arange(0, N), tl.arange(0, DP)
    known = channel < D
    STRIDE: tl.constexpr = HEADS // R * D
    slots = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * SLOTS
    origin = slots * STRIDE + head // R * D
    q = tl.load(q_ptr + group * D + channel, mask=known, other=0.0).to(tl.float32)
    top = tl.full((N,), float("-inf"), tl.float32)
    total = tl.zeros((N,), tl.float32)
    mean = tl.zeros((N, DP), tl.float32)
    for at in tl.range(0, (high - low) * PAGE, N, num_stages=PIPELINE):
        slot = slots_of_tile(ids_ptr, at, low, high, row, PAGE, N)
        valid = (slot >= 0) & (slot < length)
        offset = slot.to(tl.int64)[:, None] * STRIDE + channel[None, :]
        inside = valid[:, None] & known[None, :]
        k = tl.load(k_ptr + origin + offset, mask=inside, other=0.0)
        v = tl.load(v_ptr + origin + offset, mask=inside, other=0.0)
        top, total, mean = vector_step(q, k, v, valid, top, total, mean, SCALE)
    top, total, mean = vector_collapse(top, total, mean)
    finish(
        out_ptr, part_ptr, stats_ptr, counter_ptr, group, group, split, top, total, mean,
        1, 1, D, DP, SPLITS, SP,
    )  # fmt: skip


@triton.jit
@no_type_check
def matrix_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, layer_ptr, ids_in_ptr,
    out_ptr, part_ptr, stats_ptr, counter_ptr,
    BATCH: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SCALE: tl.constexpr, PAGE: tl.constexpr,
    K: tl.constexpr, SHARE: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr,
    N: tl.constexpr, PIPELINE: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One list for the R heads that share a key/value head: its pages are read once."""
    GROUPS: tl.constexpr = HEADS // R
    kv_head, split = tl.program_id(0) % GROUPS, (tl.program_id(0) // GROUPS) % SPLITS
    batch = tl.program_id(0) // (GROUPS * SPLITS)
    group = batch.to(tl.int64) * GROUPS + kv_head
    length = tl.minimum(tl.load(lengths_ptr + batch), SLOTS)
    low = split * SHARE
    high = tl.minimum(low + SHARE, K)
    ids_ptr = ids_in_ptr + group * K
    row, channel, query = tl.arange(0, N), tl.arange(0, DP), tl.arange(0, RP)
    known = channel < D
    STRIDE: tl.constexpr = GROUPS * D
    slots = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * SLOTS
    origin = slots * STRIDE + kv_head * D
    q = tl.load(
        q_ptr + (group * R + query)[:, None] * D + channel[None, :],
        mask=(query < R)[:, None] & known[None, :],
        other=0.0,
    )
    top = tl.full((RP,), float("-inf"), tl.float32)
    total = tl.zeros((RP,), tl.float32)
    mean = tl.zeros((RP, DP), tl.float32)
    for at in tl.range(0, (high - low) * PAGE, N, num_stages=PIPELINE):
        slot = slots_of_tile(ids_ptr, at, low, high, row, PAGE, N)
        valid = (slot >= 0) & (slot < length)
        offset = slot.to(tl.int64)[:, None] * STRIDE + channel[None, :]
        inside = valid[:, None] & known[None, :]
        k = tl.load(k_ptr + origin + offset, mask=inside, other=0.0)
        v = tl.load(v_ptr + origin + offset, mask=inside, other=0.0)
        top, total, mean = matrix_step(
            q.to(k.dtype), k, v, valid, top, total, mean, SCALE, PRECISION
        )
    finish(
        out_ptr, part_ptr, stats_ptr, counter_ptr, group * R, group, split, top, total, mean,
        R, RP, D, DP, SPLITS, SP,
    )  # fmt: skip
