"""One token a sequence, written where it belongs."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def append_kernel(
    k_new_ptr, v_new_ptr, lengths_ptr, layer_ptr, k_in, v_in, low_in, high_in,
    k_ptr, v_ptr, low_ptr, high_ptr,
    BATCH: tl.constexpr, SLOTS: tl.constexpr, P: tl.constexpr, PAGE: tl.constexpr,
    WIDTH: tl.constexpr, N: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """Writes N channels of one sequence's new token behind its last one, in place."""
    batch = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * N + tl.arange(0, N)
    slot = tl.load(lengths_ptr + batch)
    inside = (column < WIDTH) & (slot < SLOTS)  # a full sequence drops the token
    row = tl.load(layer_ptr).to(tl.int64) * BATCH + batch
    k = tl.load(k_new_ptr + batch * WIDTH + column, mask=inside, other=0.0)
    v = tl.load(v_new_ptr + batch * WIDTH + column, mask=inside, other=0.0)
    at = (row * SLOTS + slot) * WIDTH + column
    tl.store(k_ptr + at, k, mask=inside)
    tl.store(v_ptr + at, v, mask=inside)
    if PAGED:
        at = (row * P + slot // PAGE) * WIDTH + column
        low = tl.load(low_ptr + at, mask=inside, other=0.0)
        high = tl.load(high_ptr + at, mask=inside, other=0.0)
        tl.store(low_ptr + at, tl.minimum(low, k), mask=inside)
        tl.store(high_ptr + at, tl.maximum(high, k), mask=inside)
