"""Choosing each query's blocks without ever writing their scores.

A program holds the scores of a tile of queries against all block means in registers and takes the
best one K times. Means are float32; with narrow queries they come as a sum of parts in the queries'
dtype, whose products are exact, so that scores are float32-accurate at the matrix units' full rate.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _best(
    q_ptr, means_ptr, row, current,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, KEPT: tl.constexpr, FIRST: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, DEPTH: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """The chosen among the first WIDTH blocks, [ROWS, SLOTS], ascending and then 2^30."""
    NONE: tl.constexpr = 1 << 30
    lane = tl.arange(0, DEPTH)
    block = tl.arange(0, WIDTH)
    scores = tl.zeros((ROWS, WIDTH), tl.float32)
    for part in tl.static_range(PARTS - 1, -1, -1):  # the smallest first
        for start in range(0, LANES, DEPTH):
            channel = start + lane
            known = channel < CHANNELS
            q = tl.load(
                q_ptr + row[:, None] * (HEADS * CHANNELS) + channel[None, :],
                mask=(row < LENGTH)[:, None] & known[None, :],
                other=0.0,
            )
            mean = tl.load(
                means_ptr + (part * BLOCKS + block)[None, :] * CHANNELS + channel[:, None],
                mask=(block < BLOCKS)[None, :] & known[:, None],
                other=0.0,
            )
            scores = tl.dot(q, mean, scores, input_precision=PRECISION)

    # Infinities mark what cannot be chosen; a score that is itself infinite must not.
    scores = tl.where(scores == scores, tl.clamp(scores, -3.4028234e38, 3.4028234e38), float("inf"))
    eligible = (block[None, :] < current[:, None]) & (block[None, :] >= FIRST)
    scores = tl.where(eligible, scores, float("-inf"))
    slot = tl.arange(0, SLOTS)
    found = tl.where(slot[None, :] == KEPT - 1, current[:, None], NONE)
    if FIRST:
        found = tl.where((slot[None, :] == KEPT - 2) & (current[:, None] > 0), 0, found)
    for turn in range(KEPT - 1 - FIRST):
        best = tl.max(scores, axis=1)
        # The lower index wins among equals.
        index = tl.min(tl.where(scores == best[:, None], block[None, :], NONE), axis=1)
        scores = tl.where(block[None, :] == index[:, None], float("-inf"), scores)
        index = tl.where(best > float("-inf"), index, NONE)
        found = tl.where(slot[None, :] == turn, index[:, None], found)
    return tl.sort(found, dim=1)


@triton.jit
@no_type_check
def select_kernel(
    q_ptr, means_ptr, ids_ptr,
    LENGTH: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEPT: tl.constexpr, FIRST: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, DEPTH: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """q [B, T, H, D], means [B, G, PARTS, P, D] -> ids [B, H, T, KEPT]."""
    HALF: tl.constexpr = max(WIDTH // 2, 16)
    QUARTER: tl.constexpr = max(WIDTH // 4, 16)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1)
    batch, head = (at // HEADS).to(tl.int64), at % HEADS
    q_ptr += (batch * LENGTH * HEADS + head) * CHANNELS
    means_ptr += (at // GROUP).to(tl.int64) * (PARTS * BLOCKS * CHANNELS)
    current = row // BLOCK_SIZE
    # Only earlier blocks have scores: the first queries need a part of the width.
    past = (tl.program_id(0) * ROWS + ROWS - 1) // BLOCK_SIZE
    if past <= QUARTER:
        found = _best(
            q_ptr, means_ptr, row, current, LENGTH, HEADS, CHANNELS, BLOCKS, KEPT, FIRST,
            PARTS, PRECISION, ROWS, QUARTER, LANES, DEPTH, SLOTS,
        )  # fmt: skip
    elif past <= HALF:
        found = _best(
            q_ptr, means_ptr, row, current, LENGTH, HEADS, CHANNELS, BLOCKS, KEPT, FIRST,
            PARTS, PRECISION, ROWS, HALF, LANES, DEPTH, SLOTS,
        )  # fmt: skip
    else:
        found = _best(
            q_ptr, means_ptr, row, current, LENGTH, HEADS, CHANNELS, BLOCKS, KEPT, FIRST,
            PARTS, PRECISION, ROWS, WIDTH, LANES, DEPTH, SLOTS,
        )  # fmt: skip
    slot = tl.arange(0, SLOTS)
    ids_ptr += at.to(tl.int64) * LENGTH * KEPT
    tl.store(
        ids_ptr + row[:, None] * KEPT + slot[None, :],
        tl.where(found < (1 << 30), found, -1),
        mask=(row < LENGTH)[:, None] & (slot < KEPT)[None, :],
    )
