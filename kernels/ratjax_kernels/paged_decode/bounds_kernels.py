"""Quest's page bounds scored against the queries."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def scores_kernel(
    q_ptr, low_ptr, high_ptr, layer_ptr, scores_ptr, counter_ptr,
    BATCH: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, CLEAR: tl.constexpr,
):  # fmt: skip
    """N pages of one key/value head a program, for its R queries.

    With CLEAR the counter of each query head is zeroed, for the kernel that comes after.
    """
    GROUPS: tl.constexpr = HEADS // R
    TILES: tl.constexpr = (P + N - 1) // N
    kv_head, tile = tl.program_id(0) % GROUPS, (tl.program_id(0) // GROUPS) % TILES
    batch = tl.program_id(0) // (GROUPS * TILES)
    page, channel = tile * N + tl.arange(0, N), tl.arange(0, DP)
    known = channel < D
    rows = (tl.load(layer_ptr).to(tl.int64) * BATCH + batch) * P
    at = (rows + page)[:, None] * (GROUPS * D) + kv_head * D + channel[None, :]
    inside = (page < P)[:, None] & known[None, :]
    low = tl.load(low_ptr + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(high_ptr + at, mask=inside, other=0.0).to(tl.float32)
    empty = tl.max((low > high).to(tl.int32), axis=1) == 1
    # An empty page's bounds are infinite, and zero times infinity is NaN.
    low = tl.where(empty[:, None], 0.0, low)
    high = tl.where(empty[:, None], 0.0, high)
    for r in range(R):
        head = batch.to(tl.int64) * HEADS + kv_head * R + r
        q = tl.load(q_ptr + head * D + channel, mask=known, other=0.0).to(tl.float32)
        score = tl.sum(tl.maximum(q[None, :] * low, q[None, :] * high), axis=1)
        score = tl.where(empty, float("-inf"), score)
        tl.store(scores_ptr + head * P + page, score, mask=page < P)
        if CLEAR:  # noqa: SIM102 (one condition is known when compiled)
            if tile == 0:
                tl.store(counter_ptr + head, 0)
