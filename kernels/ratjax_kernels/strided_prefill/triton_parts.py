"""What the forward and backward kernels share: where the far keys are, and how rows are loaded.

A query reads two sets of keys. The far ones are a list every query shares a prefix of: the initial
keys that are not strided, then the strided ones. The near ones are, without a local window, the
query's own key alone (`OWN`), which is treated elementwise; with one, the dense band of keys around
the diagonal, where the rule is a mask. A key of the list counts as far only where it is not near.

`no_type_check` keeps import hooks that wrap functions away from what Triton reads as source.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def far_position(n, DILATION: tl.constexpr, EXTRA: tl.constexpr):
    """Where far key n stands; the first `EXTRA` are initial keys, skipping the strided."""
    if DILATION > 0:
        at = (n - EXTRA + 1) * DILATION - 1
        if EXTRA > 0:
            at = tl.where(n < EXTRA, n + n // (DILATION - 1), at)
    else:
        at = n
    return at


@triton.jit
@no_type_check
def far_end(bound, DILATION: tl.constexpr, EXTRA: tl.constexpr):
    """How much of the list can stand before position `bound`."""
    if DILATION > 0:
        end = EXTRA + bound // DILATION
    else:
        end = bound * 0 + EXTRA
    return end


@triton.jit
@no_type_check
def far_full(bound, DILATION: tl.constexpr, INITIAL: tl.constexpr, EXTRA: tl.constexpr):
    """How long a prefix of the list certainly stands before position `bound`."""
    end = far_end(bound, DILATION, EXTRA)
    return tl.where(bound >= INITIAL, end, 0)


@triton.jit
@no_type_check
def reach_of(j, DILATION: tl.constexpr, LOCAL: tl.constexpr, INITIAL: tl.constexpr):
    """How many positions behind key j its last query stands."""
    always = j < INITIAL
    if DILATION > 0:
        always = always | ((j + 1) % DILATION == 0)
    return tl.where(always, 0x7FFFFFFF, LOCAL).to(tl.uint32)


@triton.jit
@no_type_check
def masked_tile(
    t, far_tiles, full, end, near, i, COLS: tl.constexpr, LENGTH: tl.constexpr,
    DILATION: tl.constexpr, LOCAL: tl.constexpr, INITIAL: tl.constexpr, EXTRA: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """Positions of tile t of the keys that not all queries see, and who sees them.

    The list from `full` to `end` comes first, then the band from `near` on. Columns behind either
    stand at an impossible position. One unsigned comparison says that a key is neither in a query's
    future nor too far back.
    """
    column = tl.arange(0, COLS)
    n = full + t * COLS + column
    at = far_position(n, DILATION, EXTRA)
    nowhere: tl.constexpr = LENGTH + 0x10000
    if OWN:
        at = tl.where(n < end, at, nowhere)
        seen = at[None, :] < i[:, None]
    else:
        is_far = t < far_tiles
        at = tl.where((n < end) & (at < near), at, nowhere)
        at = tl.where(is_far, at, near + (t - far_tiles) * COLS + column)
        reach = reach_of(at, DILATION, LOCAL, INITIAL)
        reach = tl.where(is_far, 0x7FFFFFFF, reach).to(tl.uint32)
        seen = (i[:, None] - at[None, :]).to(tl.uint32) <= reach[None, :]
    return at, seen


@triton.jit
@no_type_check
def load_rows(
    ptr, at, STRIDE: tl.constexpr, inside, MASKED: tl.constexpr,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Rows `at` of a [T, heads, D] array as [rows, PADDED]; zero where not `inside`."""
    column = tl.arange(0, PADDED)
    where = ptr + at.to(tl.int64)[:, None] * STRIDE + column[None, :]
    if CHANNELS == PADDED:
        if MASKED:
            x = tl.load(where, mask=inside[:, None], other=0.0)
        else:
            x = tl.load(where)
    else:
        known = (column < CHANNELS)[None, :]
        if MASKED:
            known = known & inside[:, None]
        x = tl.load(where, mask=known, other=0.0)
    return x


@triton.jit
@no_type_check
def store_rows(
    ptr, at, STRIDE: tl.constexpr, inside, x, CHANNELS: tl.constexpr, PADDED: tl.constexpr
):
    """The opposite of `load_rows`, rounding to the array's dtype."""
    column = tl.arange(0, PADDED)
    where = ptr + at.to(tl.int64)[:, None] * STRIDE + column[None, :]
    known = inside[:, None] & (column < CHANNELS)[None, :]
    tl.store(where, x.to(ptr.dtype.element_ty), mask=known)
