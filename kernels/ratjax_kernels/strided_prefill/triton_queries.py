"""Backward, gradient of the queries: the forward's walk again, with probabilities from its lse."""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.strided_prefill.triton_parts import (
    far_end,
    far_full,
    far_position,
    load_rows,
    masked_tile,
    store_rows,
)


@triton.jit
@no_type_check
def _absorb(
    q, d_out, k, v, lse, delta, seen, MASKED: tl.constexpr, acc,
    LOG2_SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    d_weights = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
    weights = tl.exp2(scores * LOG2_SCALE - lse[:, None])
    d_scores = weights * (d_weights - delta[:, None])
    if MASKED:
        d_scores = tl.where(seen, d_scores, 0.0)
    return tl.dot(d_scores.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit
@no_type_check
def queries_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr, dq_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
    DILATION: tl.constexpr, LOCAL: tl.constexpr, INITIAL: tl.constexpr, EXTRA: tl.constexpr,
    OWN: tl.constexpr, LOG2_SCALE: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    tile = tiles - 1 - tl.program_id(0) // LANES
    lane = tl.program_id(0) % LANES
    batch, head = (lane // HEADS).to(tl.int64), lane % HEADS
    q_stride: tl.constexpr = HEADS * CHANNELS
    kv_stride: tl.constexpr = KV_HEADS * CHANNELS
    q_base = batch * LENGTH * q_stride + head * CHANNELS
    kv_base = batch * LENGTH * kv_stride + head // (HEADS // KV_HEADS) * CHANNELS
    k_ptr += kv_base
    v_ptr += kv_base

    first = tile * ROWS
    i = first + tl.arange(0, ROWS)
    known = i < LENGTH
    q = load_rows(q_ptr + q_base, i, q_stride, known, True, CHANNELS, PADDED)
    d_out = load_rows(d_out_ptr + q_base, i, q_stride, known, True, CHANNELS, PADDED)
    of_row = (batch * HEADS + head) * LENGTH + i
    lse = tl.load(lse_ptr + of_row, mask=known, other=0.0)
    delta = tl.load(delta_ptr + of_row, mask=known, other=0.0)
    if OWN:
        own_k = load_rows(k_ptr, i, kv_stride, known, True, CHANNELS, PADDED).to(tl.float32)
        own_v = load_rows(v_ptr, i, kv_stride, known, True, CHANNELS, PADDED).to(tl.float32)
        weight = tl.exp2(tl.sum(q.to(tl.float32) * own_k, 1) * LOG2_SCALE - lse)
        d_score = weight * (tl.sum(d_out.to(tl.float32) * own_v, 1) - delta)
        acc = d_score[:, None] * own_k
        near = first
        last = tl.minimum(first + ROWS, LENGTH) - 1
    else:
        acc = tl.zeros((ROWS, PADDED), tl.float32)
        near = tl.maximum(first - LOCAL, 0)
        last = near
    full = far_full(near, DILATION, INITIAL, EXTRA) // COLS * COLS
    end = far_end(last, DILATION, EXTRA)

    every = tl.full((ROWS, COLS), True, tl.int1)
    column = tl.arange(0, COLS)
    for n in range(0, full, COLS):
        at = far_position(n + column, DILATION, EXTRA)
        k = load_rows(k_ptr, at, kv_stride, at >= 0, False, CHANNELS, PADDED)
        v = load_rows(v_ptr, at, kv_stride, at >= 0, False, CHANNELS, PADDED)
        acc = _absorb(q, d_out, k, v, lse, delta, every, False, acc, LOG2_SCALE, PRECISION)
    far_tiles = (end - full + COLS - 1) // COLS
    near_tiles = 0
    if not OWN:
        near_tiles = (tl.minimum(first + ROWS, LENGTH) - near + COLS - 1) // COLS
    for t in range(far_tiles + near_tiles):
        at, seen = masked_tile(
            t, far_tiles, full, end, near, i,
            COLS, LENGTH, DILATION, LOCAL, INITIAL, EXTRA, OWN,
        )  # fmt: skip
        k = load_rows(k_ptr, at, kv_stride, at < LENGTH, True, CHANNELS, PADDED)
        v = load_rows(v_ptr, at, kv_stride, at < LENGTH, True, CHANNELS, PADDED)
        acc = _absorb(q, d_out, k, v, lse, delta, seen, True, acc, LOG2_SCALE, PRECISION)

    store_rows(dq_ptr + q_base, i, q_stride, known, acc * SCALE, CHANNELS, PADDED)
