"""Forward: one program a tile of queries, an online softmax over far keys, then near ones.

Scores stay unscaled; `LOG2_SCALE` folds 1 / sqrt(D) and log2(e) into the exponent's multiply-add.
Tiles late in the sequence read the most keys and start first, so that the last programs are short.
"""

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
    q, k, v, seen, MASKED: tl.constexpr, top, total, acc,
    LOG2_SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One more tile of keys in the running softmax."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    # `top` is finite from the start: rows that have seen nothing yet make no NaN.
    higher = tl.maximum(top, tl.max(scores, 1) * LOG2_SCALE)
    weights = tl.exp2(scores * LOG2_SCALE - higher[:, None])
    keep = tl.exp2(top - higher)
    total = total * keep + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
    return higher, total, acc


@triton.jit
@no_type_check
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
    DILATION: tl.constexpr, LOCAL: tl.constexpr, INITIAL: tl.constexpr, EXTRA: tl.constexpr,
    OWN: tl.constexpr, LOG2_SCALE: tl.constexpr, PRECISION: tl.constexpr,
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
    if OWN:
        own = load_rows(k_ptr, i, kv_stride, known, True, CHANNELS, PADDED)
        top = tl.sum(q.to(tl.float32) * own.to(tl.float32), 1) * LOG2_SCALE
        total = tl.full((ROWS,), 1.0, tl.float32)
        acc = load_rows(v_ptr, i, kv_stride, known, True, CHANNELS, PADDED).to(tl.float32)
        near = first
        last = tl.minimum(first + ROWS, LENGTH) - 1
    else:
        top = tl.full((ROWS,), -3.0e38, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
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
        top, total, acc = _absorb(q, k, v, every, False, top, total, acc, LOG2_SCALE, PRECISION)
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
        top, total, acc = _absorb(q, k, v, seen, True, top, total, acc, LOG2_SCALE, PRECISION)

    store_rows(out_ptr + q_base, i, q_stride, known, acc / total[:, None], CHANNELS, PADDED)
    lse = top + tl.log2(total)
    tl.store(lse_ptr + (batch * HEADS + head) * LENGTH + i, lse, mask=known)
