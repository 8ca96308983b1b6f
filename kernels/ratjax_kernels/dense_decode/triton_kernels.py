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
    N: tl.constexpr, PIPELINE: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS) % SPLITS
    batch = tl.program_id(0) // (HEADS * SPLITS)
    group = batch.to(tl.int64) * HEADS + head
    start = split * CHUNK
    stop = tl.minimum(start + CHUNK, tl.minimum(tl.load(lengths_ptr + batch), SLOTS))
    row, channel = tl.arange(0, N), tl.arange(0, DP)
    known = channel < D
    STRIDE: tl.constexpr = HEADS // R * D
    slots = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * SLOTS
    offset = row[:, None] * STRIDE + channel[None, :]
    q = tl.load(q_ptr + group * D + channel, mask=known, other=0.0).to(tl.float32)
    top = tl.full((N,), float("-inf"), tl.float32)
    total = tl.zeros((N,), tl.float32)
    mean = tl.zeros((N, DP), tl.float32)
    for at in tl.range(start, stop, N, num_stages=PIPELINE):
        valid = _kept(mask_ptr + batch.to(tl.int64) * SLOTS, at + row, at + row < stop, MASKED)
        inside = valid[:, None] & known[None, :]
        origin = (slots + at) * STRIDE + head // R * D
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
    q_ptr, k_ptr, v_ptr, lengths_ptr, layer_ptr, mask_ptr,
    out_ptr, part_ptr, stats_ptr, counter_ptr,
    BATCH: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    CHUNK: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr,
    N: tl.constexpr, PIPELINE: tl.constexpr, RP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = HEADS // R
    kv_head, split = tl.program_id(0) % GROUPS, (tl.program_id(0) // GROUPS) % SPLITS
    batch = tl.program_id(0) // (GROUPS * SPLITS)
    group = batch.to(tl.int64) * GROUPS + kv_head
    start = split * CHUNK
    stop = tl.minimum(start + CHUNK, tl.minimum(tl.load(lengths_ptr + batch), SLOTS))
    row, channel, query = tl.arange(0, N), tl.arange(0, DP), tl.arange(0, RP)
    known = channel < D
    STRIDE: tl.constexpr = GROUPS * D
    slots = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * SLOTS
    offset = row[:, None] * STRIDE + channel[None, :]
    q = tl.load(
        q_ptr + (group * R + query)[:, None] * D + channel[None, :],
        mask=(query < R)[:, None] & known[None, :],
        other=0.0,
    )
    top = tl.full((RP,), float("-inf"), tl.float32)
    total = tl.zeros((RP,), tl.float32)
    mean = tl.zeros((RP, DP), tl.float32)
    for at in tl.range(start, stop, N, num_stages=PIPELINE):
        valid = _kept(mask_ptr + batch.to(tl.int64) * SLOTS, at + row, at + row < stop, MASKED)
        inside = valid[:, None] & known[None, :]
        origin = (slots + at) * STRIDE + kv_head * D
        k = tl.load(k_ptr + origin + offset, mask=inside, other=0.0)
        v = tl.load(v_ptr + origin + offset, mask=inside, other=0.0)
        top, total, mean = matrix_step(
            q.to(k.dtype), k, v, valid, top, total, mean, SCALE, PRECISION
        )
    finish(
        out_ptr, part_ptr, stats_ptr, counter_ptr, group * R, group, split, top, total, mean,
        R, RP, D, DP, SPLITS, SP,
    )  # fmt: skip
