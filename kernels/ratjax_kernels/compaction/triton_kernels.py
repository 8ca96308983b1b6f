"""Selection without sorting, on CUDA: the threshold first, one base-256 digit a launch.

Scores become integers of the same order. `digits_kernel` counts, in each chunk of a row, the next
digit of those integers that agree with the threshold's digits so far; the following launch adds up
all chunks' counts, fixes that digit and counts the next. After four digits the threshold is known,
and every chunk's number of integers above it and equal to it, so `write_kernel` knows where in the
output each chunk begins. Counts are sums of integers: the result does not depend on any order.

`no_type_check` keeps import hooks that wrap functions away from what Triton reads as source.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Chunks whose counts are read at once.
TOGETHER = tl.constexpr(32)
_NEVER = tl.constexpr(-(2**31))
_ALWAYS = tl.constexpr(2**31 - 1)


@triton.jit
@no_type_check
def _ordered(
    scores_ptr, lengths_ptr, row, at,
    SLOTS: tl.constexpr, KV_HEADS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Integers in the order of the scores; the largest for the window, the smallest for none."""
    length = tl.minimum(tl.load(lengths_ptr + row // KV_HEADS), SLOTS)
    score = tl.load(scores_ptr + row.to(tl.int64) * SLOTS + at, mask=at < length, other=0.0)
    largest: tl.constexpr = 3.4028234663852886e38
    score = tl.minimum(tl.maximum(score.to(tl.float32), -largest), largest)
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(at >= length - WINDOW, _ALWAYS, key)
    return tl.where(at < length, key, _NEVER)


@triton.jit
@no_type_check
def _next_digit(table_ptr, row, wanted, CHUNKS: tl.constexpr):
    """The digit of the `wanted`-th largest among those counted, and how many are larger."""
    digit = tl.arange(0, 256)
    counts = tl.zeros((256,), tl.int32)
    table_ptr += row * CHUNKS * 256
    for first in range(0, CHUNKS, TOGETHER):
        chunk = first + tl.arange(0, TOGETHER)
        where = table_ptr + chunk[:, None] * 256 + digit[None, :]
        counts += tl.sum(tl.load(where, mask=(chunk < CHUNKS)[:, None], other=0), 0)
    larger = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    found = (larger < wanted) & (wanted <= larger + counts)
    return tl.sum(tl.where(found, digit, 0), 0), tl.sum(tl.where(found, larger, 0), 0)


@triton.jit
@no_type_check
def digits_kernel(
    scores_ptr, lengths_ptr, counted_ptr, state_ptr, above_ptr,
    counts_ptr, next_state_ptr, next_above_ptr,
    SLOTS: tl.constexpr, KV_HEADS: tl.constexpr, WINDOW: tl.constexpr, COUNT: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    key = _ordered(scores_ptr, lengths_ptr, row, at, SLOTS, KV_HEADS, WINDOW)
    inside = at < SLOTS
    digit = tl.arange(0, 256)
    cell = (row * CHUNKS + chunk) * 256 + digit
    if SHIFT == 24:
        prefix = row * 0
        wanted = row * 0 + COUNT
        above = row * 0
        code = (key >> 24) + 128
    else:
        # `state`: the threshold's digits before the last one counted, and how many are wanted of
        # the integers that share them; `above`: those of this chunk that are larger.
        prefix = tl.load(state_ptr + row * 2)
        wanted = tl.load(state_ptr + row * 2 + 1)
        last, larger = _next_digit(counted_ptr, row, wanted, CHUNKS)
        own = tl.load(counted_ptr + cell)
        above = tl.load(above_ptr + row * CHUNKS + chunk)
        above += tl.sum(tl.where(digit > last, own, 0), 0)
        wanted -= larger
        if SHIFT == 16:
            prefix = last - 128
        else:
            prefix = (prefix << 8) | last
        inside = inside & ((key >> (SHIFT + 8)) == prefix)
        code = (key >> SHIFT) & 255
    tl.store(counts_ptr + cell, tl.histogram(code, 256, mask=inside))
    tl.store(next_above_ptr + row * CHUNKS + chunk, above)
    if chunk == 0:
        tl.store(next_state_ptr + row * 2, prefix)
        tl.store(next_state_ptr + row * 2 + 1, wanted)


@triton.jit
@no_type_check
def write_kernel(
    scores_ptr, lengths_ptr, counted_ptr, state_ptr, above_ptr, kept_ptr,
    SLOTS: tl.constexpr, KV_HEADS: tl.constexpr, WINDOW: tl.constexpr, COUNT: tl.constexpr,
    CAPACITY: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0) // CHUNKS, tl.program_id(0) % CHUNKS
    wanted = tl.load(state_ptr + row * 2 + 1)
    last, larger = _next_digit(counted_ptr, row, wanted, CHUNKS)
    threshold = (tl.load(state_ptr + row * 2) << 8) | last
    equal = tl.where(threshold == _NEVER, 0, wanted - larger)

    digit = tl.arange(0, 256)
    above_all = row * 0
    above_before = row * 0
    equal_before = row * 0
    for first in range(0, CHUNKS, TOGETHER):
        other = first + tl.arange(0, TOGETHER)
        cell = (row * CHUNKS + other)[:, None] * 256 + digit[None, :]
        counts = tl.load(counted_ptr + cell, mask=(other < CHUNKS)[:, None], other=0)
        above = tl.load(above_ptr + row * CHUNKS + other, mask=other < CHUNKS, other=0)
        above += tl.sum(tl.where((digit > last)[None, :], counts, 0), 1)
        same = tl.sum(tl.where((digit == last)[None, :], counts, 0), 1)
        above_all += tl.sum(above, 0)
        above_before += tl.sum(tl.where(other < chunk, above, 0), 0)
        equal_before += tl.sum(tl.where(other < chunk, same, 0), 0)

    at = chunk * CHUNK + tl.arange(0, CHUNK)
    key = _ordered(scores_ptr, lengths_ptr, row, at, SLOTS, KV_HEADS, WINDOW)
    same = ((key == threshold) & (at < SLOTS)).to(tl.int32)
    rank = equal_before + tl.cumsum(same, 0) - same
    kept = (key > threshold) | ((same == 1) & (rank < equal))
    kept_before = above_before + tl.minimum(equal_before, equal)
    slot = kept_before + tl.cumsum(kept.to(tl.int32), 0) - 1
    kept_ptr += row.to(tl.int64) * CAPACITY
    tl.store(kept_ptr + slot, at, mask=kept)
    if chunk == CHUNKS - 1:
        for first in range(above_all + equal, CAPACITY, CHUNK):
            slot = first + tl.arange(0, CHUNK)
            tl.store(kept_ptr + slot, tl.full((CHUNK,), -1, tl.int32), mask=slot < CAPACITY)
