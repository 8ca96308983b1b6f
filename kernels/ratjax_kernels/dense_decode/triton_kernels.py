"""One query over a cache, split over the keys; `tiles` says how.

Heads of one position lie side by side, so programs are numbered with the heads innermost: those
that run together read whole rows of the cache.
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
def _kept(mask_ptr, at, inside, MASKED: tl.constexpr):
    """Which slots are read: all `inside` ones, or those that the mask names."""
    if MASKED:
        inside = inside & (tl.load(mask_ptr + at, mask=inside, other=0) != 0)
    return inside


@triton.jit
@no_type_check
def vector_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, layer_ptr, mask_ptr,
    out_ptr, part_ptr, stats_ptr, counter_ptr,
    BATCH: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    CHUNK: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr,
    N: tl.constexpr, BAND: tl.constexpr, PIPELINE: tl.constexpr,
):  # fmt: skip
    """A band of neighbouring heads a program, R = 1: N rows of a tile are N / BAND slots."""
    BANDS: tl.constexpr = HEADS // BAND
    band, split = tl.program_id(0) % BANDS, (tl.program_id(0) // BANDS) % SPLITS
    batch = tl.program_id(0) // (BANDS * SPLITS)
    head = batch.to(tl.int64) * HEADS + band * BAND
    start = split * CHUNK
    stop = tl.minimum(start + CHUNK, tl.load(lengths_ptr + batch))
    row, channel = tl.arange(0, N), tl.arange(0, DP)
    known = channel < D
    STRIDE: tl.constexpr = HEADS * D
    slots = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * SLOTS
    offset = (row // BAND * STRIDE + row % BAND * D)[:, None] + channel[None, :]
    q_at = (head + row % BAND)[:, None] * D + channel[None, :]
    q = tl.load(q_ptr + q_at, mask=known[None, :], other=0.0).to(tl.float32)
    top = tl.full((N,), float("-inf"), tl.float32)
    total = tl.zeros((N,), tl.float32)
    mean = tl.zeros((N, DP), tl.float32)
    for at in tl.range(start, stop, N // BAND, num_stages=PIPELINE):
        slot = at + row // BAND
        valid = _kept(mask_ptr + batch.to(tl.int64) * SLOTS, slot, slot < stop, MASKED)
        inside = valid[:, None] & known[None, :]
        origin = (slots + at) * STRIDE + band * BAND * D
        k = tl.load(k_ptr + origin + offset, mask=inside, other=0.0)
        v = tl.load(v_ptr + origin + offset, mask=inside, other=0.0)
        top, total, mean = vector_step(q, k, v, valid, top, total, mean, SCALE)
    for h in tl.static_range(BAND):
        one = tl.where(row % BAND == h, top, float("-inf"))
        best, whole, average = vector_collapse(one, total, mean)
        finish(
            out_ptr, part_ptr, stats_ptr, counter_ptr, head + h, head + h, split,
            best, whole, average, 1, 1, D, DP, SPLITS, SP,
        )  # fmt: skip


@triton.jit
@no_type_check
def matrix_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, layer_ptr, mask_ptr,
    out_ptr, part_ptr, stats_ptr, counter_ptr,
    BATCH: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    CHUNK: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr,
    N: tl.constexpr, BAND: tl.constexpr, PIPELINE: tl.constexpr,
    RP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A band of neighbouring key/value heads a program, each with its R queries.

    The band's queries fill the 16 rows that a matrix product has at least; what a query makes of
    another head's keys is thrown away.
    """
    GROUPS: tl.constexpr = HEADS // R
    BANDS: tl.constexpr = GROUPS // BAND
    QUERIES: tl.constexpr = R * BAND
    band, split = tl.program_id(0) % BANDS, (tl.program_id(0) // BANDS) % SPLITS
    batch = tl.program_id(0) // (BANDS * SPLITS)
    group = batch.to(tl.int64) * BANDS + band
    start = split * CHUNK
    stop = tl.minimum(start + CHUNK, tl.load(lengths_ptr + batch))
    row, channel, query = tl.arange(0, N), tl.arange(0, DP), tl.arange(0, RP)
    known = channel < D
    own = (query // R)[:, None] == (row % BAND)[None, :]
    STRIDE: tl.constexpr = GROUPS * D
    slots = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * SLOTS
    offset = (row // BAND * STRIDE + row % BAND * D)[:, None] + channel[None, :]
    q = tl.load(
        q_ptr + (group * QUERIES + query)[:, None] * D + channel[None, :],
        mask=(query < QUERIES)[:, None] & known[None, :],
        other=0.0,
    )
    top = tl.full((RP,), float("-inf"), tl.float32)
    total = tl.zeros((RP,), tl.float32)
    mean = tl.zeros((RP, DP), tl.float32)
    for at in tl.range(start, stop, N // BAND, num_stages=PIPELINE):
        slot = at + row // BAND
        valid = _kept(mask_ptr + batch.to(tl.int64) * SLOTS, slot, slot < stop, MASKED)
        inside = valid[:, None] & known[None, :]
        origin = (slots + at) * STRIDE + band * BAND * D
        k = tl.load(k_ptr + origin + offset, mask=inside, other=0.0)
        v = tl.load(v_ptr + origin + offset, mask=inside, other=0.0)
        top, total, mean = matrix_step(
            q.to(k.dtype), k, v, valid[None, :] & own, top, total, mean, SCALE, PRECISION
        )
    finish(
        out_ptr, part_ptr, stats_ptr, counter_ptr, group * QUERIES, group, split,
        top, total, mean, QUERIES, RP, D, DP, SPLITS, SP,
    )  # fmt: skip
