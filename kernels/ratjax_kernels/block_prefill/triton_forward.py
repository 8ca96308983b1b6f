"""Attention over listed blocks, forward.

`visit_kernel` walks a block's list: it gathers the queries that visit the block into dense tiles
and leaves each one's average of the values, and its log-sum-exp (base 2), at the entry. What
neighbouring queries share, their own block and block 0, `local_kernel` treats without any list.
`merge_kernel` adds everything up for each query, in the order of the slots.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def find_item(starts_ptr, item, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """The block that work item `item` belongs to, and the item's number within the block."""
    index = tl.arange(0, WIDTH)
    starts = tl.load(starts_ptr + index, mask=index < BLOCKS, other=1 << 30)
    begun = starts <= item
    block = tl.sum(begun.to(tl.int32), axis=0) - 1
    return block, item - tl.max(tl.where(begun, starts, 0), axis=0)


@triton.jit
@no_type_check
def load_tile(ptr, offset, inside, CHANNELS: tl.constexpr, LANES: tl.constexpr):
    """Rows at `offset`, [rows, LANES]; zero outside."""
    channel = tl.arange(0, LANES)
    if LANES == CHANNELS:
        return tl.load(ptr + offset[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
    mask = inside[:, None] & (channel < CHANNELS)[None, :]
    return tl.load(ptr + offset[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def store_tile(ptr, offset, inside, tile, CHANNELS: tl.constexpr, LANES: tl.constexpr):
    """The reverse of `load_tile`, rounded to the dtype of `ptr`."""
    channel = tl.arange(0, LANES)
    tile = tile.to(ptr.dtype.element_ty)
    mask = inside[:, None] & (channel < CHANNELS)[None, :]
    tl.store(ptr + offset[:, None] + channel[None, :], tile, mask=mask)


@triton.jit
@no_type_check
def query_offset(row, HEADS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr):
    """Where row t R + r stands within [T, H, D] at its key/value head's first query head."""
    return ((row // GROUP) * HEADS + row % GROUP) * CHANNELS


@triton.jit
@no_type_check
def visit_kernel(
    q_ptr, k_ptr, v_ptr, lists_ptr, own_ptr, entries_ptr, starts_ptr,
    out_ptr, lse_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEPT: tl.constexpr, SCALE: tl.constexpr,
    ITEMS: tl.constexpr, SEGMENT: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes out [S, N, KEPT, D] and lse [S, N, KEPT] at the entries it visits."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    stream, item = tl.program_id(0) // ITEMS, tl.program_id(0) % ITEMS
    starts_ptr += stream * (BLOCKS + 1)
    if item >= tl.load(starts_ptr + BLOCKS):
        return
    block, segment = find_item(starts_ptr, item, BLOCKS, WIDTH)
    entries_ptr += stream * (BLOCKS + 1)
    first = tl.load(entries_ptr + block) + tl.load(own_ptr + stream * BLOCKS + block)
    first += segment * SEGMENT
    last = tl.minimum(tl.load(entries_ptr + block + 1), first + SEGMENT)

    batch, head = (stream // KV_HEADS).to(tl.int64), stream % KV_HEADS
    q_ptr += (batch * LENGTH * HEADS + head * GROUP) * CHANNELS
    kv = (batch * LENGTH * KV_HEADS + head) * CHANNELS
    rows: tl.constexpr = LENGTH * GROUP * KEPT
    lists_ptr += stream.to(tl.int64) * rows
    lse_ptr += stream.to(tl.int64) * rows
    out_ptr += stream.to(tl.int64) * rows * CHANNELS

    key = tl.arange(0, KEYS)
    # Only queries behind a block visit it, so all its positions exist and all are in their past.
    key_offset = (block * BLOCK_SIZE + key) * (KV_HEADS * CHANNELS)
    k = load_tile(k_ptr + kv, key_offset, key < BLOCK_SIZE, CHANNELS, LANES)
    v = load_tile(v_ptr + kv, key_offset, key < BLOCK_SIZE, CHANNELS, LANES)
    for start in range(first, last, ROWS):
        at = start + tl.arange(0, ROWS)
        inside = at < last
        entry = tl.load(lists_ptr + at, mask=inside, other=0)
        offset = query_offset(entry // KEPT, HEADS, GROUP, CHANNELS)
        q = load_tile(q_ptr, offset, inside, CHANNELS, LANES)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * SCALE
        if KEYS != BLOCK_SIZE:
            scores = tl.where((key < BLOCK_SIZE)[None, :], scores, float("-inf"))
        top = tl.max(scores, axis=1)
        weights = tl.exp2(scores - top[:, None])
        total = tl.sum(weights, axis=1)
        out = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) * (1.0 / total)[:, None]
        store_tile(out_ptr, entry * CHANNELS, inside, out, CHANNELS, LANES)
        tl.store(lse_ptr + entry, top + tl.log2(total), mask=inside)


@triton.jit
@no_type_check
def _attend(
    q, k_ptr, v_ptr, position, block, sees, top, total, out,
    LENGTH: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SCALE: tl.constexpr,
    KEYS: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of a running softmax: the rows that see `block` attend to it, causally."""
    key = tl.arange(0, KEYS)
    at = block * BLOCK_SIZE + key
    inside = (key < BLOCK_SIZE) & (at < LENGTH)
    k = load_tile(k_ptr, at * (KV_HEADS * CHANNELS), inside, CHANNELS, LANES)
    v = load_tile(v_ptr, at * (KV_HEADS * CHANNELS), inside, CHANNELS, LANES)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * SCALE
    visible = sees[:, None] & inside[None, :] & (at[None, :] <= position[:, None])
    scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    level = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - level[:, None])
    shrink = tl.exp2(top - level)
    new = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    # Rows that do not see the block must not multiply its values by zero: they may be NaN.
    out = tl.where(sees[:, None], new, out)
    total = tl.where(sees, total * shrink + tl.sum(weights, axis=1), total)
    return tl.where(sees, new_top, top), total, out


@triton.jit
@no_type_check
def local_kernel(
    q_ptr, k_ptr, v_ptr, ids_ptr,
    out_ptr, lse_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEPT: tl.constexpr, SCALE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own block and block 0: out [B, T, H, D], lse [S, N]; -inf and zeros where neither is seen."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    N: tl.constexpr = LENGTH * GROUP
    stream = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < N
    position = row // GROUP
    current = position // BLOCK_SIZE
    batch, head = (stream // KV_HEADS).to(tl.int64), stream % KV_HEADS
    q_at = (batch * LENGTH * HEADS + head * GROUP) * CHANNELS
    kv = (batch * LENGTH * KV_HEADS + head) * CHANNELS
    ids_ptr += stream.to(tl.int64) * (N * KEPT)

    sees_own = row < 0
    sees_first = row < 0
    for slot in tl.range(KEPT, loop_unroll_factor=4):
        listed = tl.load(ids_ptr + row * KEPT + slot, mask=real, other=-1)
        sees_own = sees_own | (listed == current)
        sees_first = sees_first | ((listed == 0) & (current > 0))

    offset = query_offset(row, HEADS, GROUP, CHANNELS)
    q = load_tile(q_ptr + q_at, offset, real, CHANNELS, LANES)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, LANES), tl.float32)
    # Block 0 (number -1 here) and the blocks that the tile's queries stand in.
    first = (tl.program_id(0) * ROWS // GROUP) // BLOCK_SIZE
    end = tl.minimum(tl.program_id(0) * ROWS + ROWS, N) - 1
    begin = tl.where(tl.max(sees_first.to(tl.int32), axis=0) > 0, first - 1, first)
    for index in range(begin, (end // GROUP) // BLOCK_SIZE + 1):
        block = tl.where(index < first, 0, index)
        sees = tl.where(index < first, sees_first, sees_own & (current == index))
        top, total, out = _attend(
            q, k_ptr + kv, v_ptr + kv, position, block, sees, top, total, out,
            LENGTH, KV_HEADS, CHANNELS, BLOCK_SIZE, SCALE, KEYS, LANES, PRECISION,
        )  # fmt: skip
    seen = total > 0
    out = out * (1.0 / tl.where(seen, total, 1.0))[:, None]
    store_tile(out_ptr + q_at, offset, real, out, CHANNELS, LANES)
    lse = tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)), float("-inf"))
    tl.store(lse_ptr + stream.to(tl.int64) * N + row, lse, mask=real)


@triton.jit
@no_type_check
def merge_kernel(
    ids_ptr, parts_ptr, part_lse_ptr, local_ptr, local_lse_ptr,
    out_ptr, lse_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEPT: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Writes out [B, T, H, D] and lse [S, N]; a row that sees no key: zeros and +inf."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    N: tl.constexpr = LENGTH * GROUP
    stream = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < N
    current = (row // GROUP) // BLOCK_SIZE
    q_at = ((stream // KV_HEADS) * LENGTH * HEADS + (stream % KV_HEADS) * GROUP) * CHANNELS
    ids_ptr += stream * (N * KEPT)
    part_lse_ptr += stream * (N * KEPT)
    parts_ptr += stream * (N * KEPT) * CHANNELS

    local_lse = tl.load(local_lse_ptr + stream * N + row, mask=real, other=float("-inf"))
    top = local_lse
    for slot in tl.range(KEPT, loop_unroll_factor=4):
        entry = row * KEPT + slot
        listed = tl.load(ids_ptr + entry, mask=real, other=-1)
        visited = (listed > 0) & (listed < current)
        part_lse = tl.load(part_lse_ptr + entry, mask=visited, other=float("-inf"))
        top = tl.maximum(top, part_lse)
    nothing = top == float("-inf")
    top = tl.where(nothing, 0.0, top)

    offset = query_offset(row, HEADS, GROUP, CHANNELS)
    total = tl.exp2(local_lse - top)
    local = load_tile(local_ptr + q_at, offset, real, CHANNELS, LANES)
    out = local.to(tl.float32) * total[:, None]
    for slot in tl.range(KEPT, loop_unroll_factor=4):
        entry = row * KEPT + slot
        listed = tl.load(ids_ptr + entry, mask=real, other=-1)
        visited = (listed > 0) & (listed < current)
        part_lse = tl.load(part_lse_ptr + entry, mask=visited, other=float("-inf"))
        part = load_tile(parts_ptr, entry * CHANNELS, visited, CHANNELS, LANES)
        weight = tl.exp2(part_lse - top)
        out += part.to(tl.float32) * weight[:, None]
        total += weight
    total = tl.where(nothing, 1.0, total)
    store_tile(out_ptr + q_at, offset, real, out * (1.0 / total)[:, None], CHANNELS, LANES)
    lse = tl.where(nothing, float("inf"), top + tl.log2(total))
    tl.store(lse_ptr + stream * N + row, lse, mask=real)
