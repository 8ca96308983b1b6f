"""Backward, gradients of keys and values: far queries first, near ones and the sum after.

Few far keys each meet nearly all queries, so `far_keys_kernel` cuts the queries into `SPLITS`
equal stretches and keeps a partial sum for each stretch and query head, in float32. `keys_kernel`
walks all keys, meets each with its near queries, adds the partial sums of its group's heads in a
fixed order and writes. Near, for a key, are the queries up to `LOCAL` after the end of its tile of
`ROWS` keys (`OWN`: its own query alone); `_first_far` says where the others start.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.strided_prefill.triton_parts import (
    far_position,
    load_rows,
    reach_of,
    store_rows,
)


@triton.jit
@no_type_check
def _first_far(at, LOCAL: tl.constexpr, OWN: tl.constexpr, NEAR_ROWS: tl.constexpr):
    if OWN:
        first = at + 1
    else:
        first = at // NEAR_ROWS * NEAR_ROWS + NEAR_ROWS + LOCAL
    return first


@triton.jit
@no_type_check
def _absorb(
    k, v, q, d_out, lse, delta, seen, MASKED: tl.constexpr, dk, dv,
    LOG2_SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One more tile of queries; keys stand along the rows."""
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    weights = tl.exp2(scores * LOG2_SCALE - lse[None, :])
    if MASKED:
        weights = tl.where(seen, weights, 0.0)
    dv = tl.dot(weights.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
    d_weights = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
    d_scores = weights * (d_weights - delta[None, :])
    dk = tl.dot(d_scores.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
@no_type_check
def far_keys_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
    DILATION: tl.constexpr, LOCAL: tl.constexpr, EXTRA: tl.constexpr,
    OWN: tl.constexpr, LOG2_SCALE: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr, NEAR_ROWS: tl.constexpr, SPLITS: tl.constexpr, STRETCH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (FAR + ROWS - 1) // ROWS
    lane = tl.program_id(0) % LANES
    tile = tl.program_id(0) // LANES % tiles
    split = SPLITS - 1 - tl.program_id(0) // (LANES * tiles)
    batch, head = (lane // HEADS).to(tl.int64), lane % HEADS
    q_stride: tl.constexpr = HEADS * CHANNELS
    kv_stride: tl.constexpr = KV_HEADS * CHANNELS
    q_base = batch * LENGTH * q_stride + head * CHANNELS
    kv_base = batch * LENGTH * kv_stride + head // (HEADS // KV_HEADS) * CHANNELS
    q_ptr += q_base
    d_out_ptr += q_base
    of_head = (batch * HEADS + head) * LENGTH
    lse_ptr += of_head
    delta_ptr += of_head

    n = tile * ROWS + tl.arange(0, ROWS)
    known = n < FAR
    at = far_position(n, DILATION, EXTRA)
    k = load_rows(k_ptr + kv_base, at, kv_stride, known, True, CHANNELS, PADDED)
    v = load_rows(v_ptr + kv_base, at, kv_stride, known, True, CHANNELS, PADDED)
    starts = _first_far(at, LOCAL, OWN, NEAR_ROWS)
    begin = tl.maximum(tl.min(tl.where(known, starts, LENGTH)), split * STRETCH)
    begin = begin // COLS * COLS
    end = tl.minimum((split + 1) * STRETCH, LENGTH)
    full = tl.maximum(tl.max(tl.where(known, starts, 0)), begin)
    full = tl.minimum((full + COLS - 1) // COLS * COLS, end)

    dk = tl.zeros((ROWS, PADDED), tl.float32)
    dv = tl.zeros((ROWS, PADDED), tl.float32)
    every = tl.full((ROWS, COLS), True, tl.int1)
    column = tl.arange(0, COLS)
    for start in range(begin, full, COLS):
        i = start + column
        q = load_rows(q_ptr, i, q_stride, i < LENGTH, True, CHANNELS, PADDED)
        d_out = load_rows(d_out_ptr, i, q_stride, i < LENGTH, True, CHANNELS, PADDED)
        lse = tl.load(lse_ptr + i, mask=i < LENGTH, other=0.0)
        delta = tl.load(delta_ptr + i, mask=i < LENGTH, other=0.0)
        seen = (i[None, :] >= starts[:, None]) & (i < LENGTH)[None, :]
        dk, dv = _absorb(k, v, q, d_out, lse, delta, seen, True, dk, dv, LOG2_SCALE, PRECISION)
    for start in range(full, end, COLS):
        i = start + column
        # Past the end q and d_out are zero, and so is what they add.
        ragged: tl.constexpr = LENGTH % COLS != 0
        q = load_rows(q_ptr, i, q_stride, i < LENGTH, ragged, CHANNELS, PADDED)
        d_out = load_rows(d_out_ptr, i, q_stride, i < LENGTH, ragged, CHANNELS, PADDED)
        lse = tl.load(lse_ptr + i, mask=i < LENGTH, other=0.0)
        delta = tl.load(delta_ptr + i, mask=i < LENGTH, other=0.0)
        dk, dv = _absorb(k, v, q, d_out, lse, delta, every, False, dk, dv, LOG2_SCALE, PRECISION)

    # [batch, split, head, far key, channel]
    base = ((batch * SPLITS + split) * HEADS + head) * FAR * CHANNELS
    store_rows(dk_ptr + base, n, CHANNELS, known, dk, CHANNELS, PADDED)
    store_rows(dv_ptr + base, n, CHANNELS, known, dv, CHANNELS, PADDED)


@triton.jit
@no_type_check
def keys_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr, far_dk_ptr, far_dv_ptr, dk_ptr, dv_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
    DILATION: tl.constexpr, LOCAL: tl.constexpr, INITIAL: tl.constexpr, EXTRA: tl.constexpr,
    OWN: tl.constexpr, LOG2_SCALE: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    FAR: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    tile, lane = tl.program_id(0) // LANES, tl.program_id(0) % LANES
    batch, kv_head = (lane // KV_HEADS).to(tl.int64), lane % KV_HEADS
    q_stride: tl.constexpr = HEADS * CHANNELS
    kv_stride: tl.constexpr = KV_HEADS * CHANNELS
    q_base = batch * LENGTH * q_stride
    kv_base = batch * LENGTH * kv_stride + kv_head * CHANNELS

    first = tile * ROWS
    j = first + tl.arange(0, ROWS)
    known = j < LENGTH
    k = load_rows(k_ptr + kv_base, j, kv_stride, known, True, CHANNELS, PADDED)
    v = load_rows(v_ptr + kv_base, j, kv_stride, known, True, CHANNELS, PADDED)
    dk = tl.zeros((ROWS, PADDED), tl.float32)
    dv = tl.zeros((ROWS, PADDED), tl.float32)
    reach = reach_of(j, DILATION, LOCAL, INITIAL)
    column = tl.arange(0, COLS)
    for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
        of_head = q_base + head * CHANNELS
        row = (batch * HEADS + head) * LENGTH
        if OWN:
            q = load_rows(q_ptr + of_head, j, q_stride, known, True, CHANNELS, PADDED)
            d_out = load_rows(d_out_ptr + of_head, j, q_stride, known, True, CHANNELS, PADDED)
            q = q.to(tl.float32)
            d_out = d_out.to(tl.float32)
            lse = tl.load(lse_ptr + row + j, mask=known, other=0.0)
            delta = tl.load(delta_ptr + row + j, mask=known, other=0.0)
            weight = tl.exp2(tl.sum(q * k.to(tl.float32), 1) * LOG2_SCALE - lse)
            d_score = weight * (tl.sum(d_out * v.to(tl.float32), 1) - delta)
            dk += d_score[:, None] * q
            dv += weight[:, None] * d_out
        else:
            for start in range(first, tl.minimum(first + ROWS + LOCAL, LENGTH), COLS):
                i = start + column
                q = load_rows(q_ptr + of_head, i, q_stride, i < LENGTH, True, CHANNELS, PADDED)
                d_out = load_rows(
                    d_out_ptr + of_head, i, q_stride, i < LENGTH, True, CHANNELS, PADDED
                )
                lse = tl.load(lse_ptr + row + i, mask=i < LENGTH, other=0.0)
                delta = tl.load(delta_ptr + row + i, mask=i < LENGTH, other=0.0)
                near = (i < LENGTH) & (i < first + ROWS + LOCAL)
                behind = tl.where(near, i, -1)[None, :] - j[:, None]
                seen = behind.to(tl.uint32) <= reach[:, None]
                dk, dv = _absorb(
                    k, v, q, d_out, lse, delta, seen, True, dk, dv, LOG2_SCALE, PRECISION
                )

    if FAR > 0:
        if DILATION > 0:
            strided = (j + 1) % DILATION == 0
            n = tl.where(strided, EXTRA + (j + 1) // DILATION - 1, j - j // DILATION)
            listed = known & (strided | (j < INITIAL))
        else:
            n = j
            listed = known & (j < INITIAL)
        for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
            for split in range(SPLITS):
                base = ((batch * SPLITS + split) * HEADS + head) * FAR * CHANNELS
                dk += load_rows(far_dk_ptr + base, n, CHANNELS, listed, True, CHANNELS, PADDED)
                dv += load_rows(far_dv_ptr + base, n, CHANNELS, listed, True, CHANNELS, PADDED)
    store_rows(dk_ptr + kv_base, j, kv_stride, known, dk * SCALE, CHANNELS, PADDED)
    store_rows(dv_ptr + kv_base, j, kv_stride, known, dv, CHANNELS, PADDED)
