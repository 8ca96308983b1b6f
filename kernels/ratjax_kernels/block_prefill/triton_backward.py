"""Attention over listed blocks, backward.

`gradients_kernel` walks a block's list once more, recomputes the probabilities from the saved
log-sum-exp, sums the gradients of the block's keys and values in registers, and leaves each entry's
share of its query's gradient at the entry; `query_kernel` adds those up in the order of the slots.
A list too long for one program is walked in segments, whose sums `total_kernel` adds up in order.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.block_prefill.triton_forward import (
    find_item,
    load_tile,
    query_offset,
    store_tile,
)


@triton.jit
@no_type_check
def gradients_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr, lists_ptr, entries_ptr, starts_ptr,
    shared_ptr,
    dk_ptr, dv_ptr, dq_ptr, dk_parts_ptr, dv_parts_ptr,
    BATCH: tl.constexpr, LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEPT: tl.constexpr, SCALE: tl.constexpr,
    NATURAL_SCALE: tl.constexpr, ITEMS: tl.constexpr, SHARED: tl.constexpr,
    SEGMENT: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv [B, T, G, D] and dq at the entries, [S, N, KEPT, D].

    Sums of lists in several segments go to dk_parts and dv_parts, [S, SHARED, KEYS, D] float32.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    N: tl.constexpr = LENGTH * GROUP
    # Programs start in the order of their numbers: all streams' first items come first, which are
    # block 0's where every query lists it, so that no long list is left for the end.
    HEAD: tl.constexpr = min((N + SEGMENT - 1) // SEGMENT, ITEMS - 1)
    STREAMS: tl.constexpr = BATCH * KV_HEADS
    number = tl.program_id(0)
    if number < STREAMS * HEAD:
        stream, item = number % STREAMS, number // STREAMS
    else:
        number -= STREAMS * HEAD
        stream, item = number // (ITEMS - HEAD), HEAD + number % (ITEMS - HEAD)
    starts_ptr += stream * (BLOCKS + 1)
    if item >= tl.load(starts_ptr + BLOCKS):
        return
    block, segment = find_item(starts_ptr, item, BLOCKS, WIDTH)
    entries_ptr += stream * (BLOCKS + 1)
    first = tl.load(entries_ptr + block) + segment * SEGMENT
    last = tl.minimum(tl.load(entries_ptr + block + 1), first + SEGMENT)

    wide = stream.to(tl.int64)
    batch, head = wide // KV_HEADS, wide % KV_HEADS
    q_at = (batch * LENGTH * HEADS + head * GROUP) * CHANNELS
    kv = (batch * LENGTH * KV_HEADS + head) * CHANNELS
    lists_ptr += wide * (N * KEPT)
    dq_ptr += wide * (N * KEPT) * CHANNELS
    lse_ptr += wide * N
    delta_ptr += wide * N

    key = tl.arange(0, KEYS)
    key_at = block * BLOCK_SIZE + key
    key_offset = key_at * (KV_HEADS * CHANNELS)
    real = (key < BLOCK_SIZE) & (key_at < LENGTH)
    k = load_tile(k_ptr + kv, key_offset, real, CHANNELS, LANES)
    v = load_tile(v_ptr + kv, key_offset, real, CHANNELS, LANES)
    dk = tl.zeros((KEYS, LANES), tl.float32)
    dv = tl.zeros((KEYS, LANES), tl.float32)
    for start in range(first, last, ROWS):
        at = start + tl.arange(0, ROWS)
        inside = at < last
        entry = tl.load(lists_ptr + at, mask=inside, other=0)
        row = entry // KEPT
        offset = query_offset(row, HEADS, GROUP, CHANNELS)
        q = load_tile(q_ptr + q_at, offset, inside, CHANNELS, LANES)
        d_out = load_tile(d_out_ptr + q_at, offset, inside, CHANNELS, LANES)
        # Nobody there: a probability of zero.
        lse = tl.load(lse_ptr + row, mask=inside, other=float("inf"))
        delta = tl.load(delta_ptr + row, mask=inside, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * SCALE - lse[None, :]
        # A block's own queries are in its list as well, and see a part of it.
        visible = key_at[:, None] <= (row // GROUP)[None, :]
        if KEYS != BLOCK_SIZE:
            visible = visible & (key < BLOCK_SIZE)[:, None]
        weights = tl.exp2(tl.where(visible, scores, float("-inf")))
        dv += tl.dot(weights.to(d_out.dtype), d_out, input_precision=PRECISION)
        d_weights = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
        d_scores = (weights * (d_weights - delta[None, :])).to(q.dtype)
        dk += tl.dot(d_scores, q, input_precision=PRECISION)
        dq = tl.dot(tl.trans(d_scores), k, input_precision=PRECISION) * NATURAL_SCALE
        store_tile(dq_ptr, entry * CHANNELS, inside, dq, CHANNELS, LANES)

    dk *= NATURAL_SCALE
    shared_ptr += stream * (BLOCKS + 1)
    place = tl.load(shared_ptr + block)
    if tl.load(shared_ptr + block + 1) > place:
        part = (wide * SHARED + place + segment) * (KEYS * CHANNELS)
        store_tile(dk_parts_ptr + part, key * CHANNELS, key < KEYS, dk, CHANNELS, LANES)
        store_tile(dv_parts_ptr + part, key * CHANNELS, key < KEYS, dv, CHANNELS, LANES)
    else:
        store_tile(dk_ptr + kv, key_offset, real, dk, CHANNELS, LANES)
        store_tile(dv_ptr + kv, key_offset, real, dv, CHANNELS, LANES)


@triton.jit
@no_type_check
def total_kernel(
    dk_parts_ptr, dv_parts_ptr, shared_ptr, dk_in_ptr, dv_in_ptr, dk_ptr, dv_ptr,
    LENGTH: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SHARED: tl.constexpr,
    KEYS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv of the blocks walked in segments, in place."""
    block, stream = tl.program_id(0), tl.program_id(2).to(tl.int64)
    shared_ptr += stream * (BLOCKS + 1)
    number, end = tl.load(shared_ptr + block), tl.load(shared_ptr + block + 1)
    if number == end:
        return
    key = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dk = tl.zeros((ROWS, LANES), tl.float32)
    dv = tl.zeros((ROWS, LANES), tl.float32)
    for index in range(number, end):
        part = (stream * SHARED + index) * (KEYS * CHANNELS)
        dk += load_tile(dk_parts_ptr + part, key * CHANNELS, key < KEYS, CHANNELS, LANES)
        dv += load_tile(dv_parts_ptr + part, key * CHANNELS, key < KEYS, CHANNELS, LANES)
    kv = ((stream // KV_HEADS) * LENGTH * KV_HEADS + stream % KV_HEADS) * CHANNELS
    key_at = block * BLOCK_SIZE + key
    real = (key < BLOCK_SIZE) & (key_at < LENGTH)
    store_tile(dk_ptr + kv, key_at * (KV_HEADS * CHANNELS), real, dk, CHANNELS, LANES)
    store_tile(dv_ptr + kv, key_at * (KV_HEADS * CHANNELS), real, dv, CHANNELS, LANES)


@triton.jit
@no_type_check
def query_kernel(
    parts_ptr, ids_ptr, dq_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    KEPT: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """dq [B, T, H, D]: the sum over the slots that list something."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    N: tl.constexpr = LENGTH * GROUP
    stream = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < N
    parts_ptr += stream * (N * KEPT) * CHANNELS
    ids_ptr += stream * (N * KEPT)
    dq = tl.zeros((ROWS, LANES), tl.float32)
    for slot in tl.range(KEPT, loop_unroll_factor=4):
        entry = row * KEPT + slot
        listed = tl.load(ids_ptr + entry, mask=real, other=-1) >= 0
        dq += load_tile(parts_ptr, entry * CHANNELS, listed, CHANNELS, LANES).to(tl.float32)
    q_at = ((stream // KV_HEADS) * LENGTH * HEADS + (stream % KV_HEADS) * GROUP) * CHANNELS
    offset = query_offset(row, HEADS, GROUP, CHANNELS)
    store_tile(dq_ptr + q_at, offset, real, dq, CHANNELS, LANES)
