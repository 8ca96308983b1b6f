"""The recurrence on CUDA: one pass over memory, forward and backward.

The [T, C] plane of a sequence is cut into tiles of ROWS positions by COLS channels, one program of
one or two warps each. A thread walks down its own channels as if the state before the tile were
zero, and keeps in registers, for each position, the state and the product of the gates so far:
whatever state then turns out to enter is one multiply-add a number away. Threads exchange nothing,
and all loads of a tile are on their way at once. Every element crosses the memory bus once each
way; `triton_chain` says how the state gets from tile to tile.

Backward walks the tiles from the end. The states it needs it takes along from the one that entered
the tile, which forward has left behind every SAVE positions where a gradient was wanted.

`no_type_check` keeps import hooks that wrap functions away from what Triton reads as source.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.scan.triton_chain import hand_on, next_tile
from ratjax_kernels.triton_call import INTERPRETED

_PRECISE = tl.constexpr(INTERPRETED)  # the interpreter knows no machine instructions


@triton.jit
@no_type_check
def _weights(gate):
    """s(x) and s(-x); exact at both infinities.

    What is taken in, s(-x), keeps its relative precision. What is kept is its complement, which is
    off by at most half a unit in the last place of one: no more than rounding the state costs.
    """
    x = gate.to(tl.float32) * 1.4426950408889634
    if _PRECISE:
        take = 1.0 / (1.0 + tl.exp2(x))
    else:
        # The machine's own instructions: Triton's exponential and division spend several more
        # on denormals, which adding one swallows. The relative error stays near 2^-22.
        e = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
        take = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 - take, take


@triton.jit
@no_type_check
def _load(at, inside, fill: tl.constexpr, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(at)
    return tl.load(at, mask=inside, other=fill)


@triton.jit
@no_type_check
def _load_row(gate_ptr, x_ptr, y_ptr, at, inside, EVEN: tl.constexpr):
    """Gate and two more, as they lie; outside, what keeps the state: gate one, nothing taken in."""
    gate = _load(gate_ptr + at, inside, float("inf"), EVEN)
    return gate, _load(x_ptr + at, inside, 0.0, EVEN), _load(y_ptr + at, inside, 0.0, EVEN)


@triton.jit
@no_type_check
def _store(at, value, inside, EVEN: tl.constexpr):
    value = value.to(at.dtype.element_ty)
    if EVEN:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=inside)


@triton.jit
@no_type_check
def forward_kernel(
    gate_ptr, k_ptr, v_ptr, k_0_ptr, v_0_ptr,
    k_mem_ptr, v_mem_ptr, k_last_ptr, v_last_ptr, states_ptr, shared_ptr,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr, RING: tl.constexpr,
    SAVE: tl.constexpr, SAVES: tl.constexpr,
):  # fmt: skip
    column_tiles: tl.constexpr = (CHANNELS + COLS - 1) // COLS
    row_tiles: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    EVEN: tl.constexpr = LENGTH % ROWS == 0 and CHANNELS % COLS == 0
    lane = tl.program_id(0) % LANES
    tile = next_tile(shared_ptr, lane, LANES, COLS, WINDOW, RING)
    batch = (lane // column_tiles).to(tl.int64)
    column = (lane % column_tiles) * COLS + tl.arange(0, COLS)
    known = column < CHANNELS
    # 64-bit arithmetic once a program, 32-bit within its tile.
    origin = (batch * LENGTH + tile * ROWS) * CHANNELS

    kept = tl.full((COLS,), 1.0, tl.float32)
    k_sum = tl.zeros((COLS,), tl.float32)
    v_sum = tl.zeros((COLS,), tl.float32)
    held = ()
    for r in tl.static_range(ROWS):
        inside = (tile * ROWS + r < LENGTH) & known
        at = origin + r * CHANNELS + column
        gate, k, v = _load_row(gate_ptr, k_ptr, v_ptr, at, inside, EVEN)
        keep, take = _weights(gate)
        k, v = k.to(tl.float32), v.to(tl.float32)
        kept *= keep
        k_sum = keep * k_sum + take * k
        v_sum = keep * v_sum + take * v
        held = held + ((kept, k_sum, v_sum),)  # noqa: RUF005

    state_at = batch * CHANNELS + column
    k_0 = tl.zeros((COLS,), tl.float32)
    v_0 = tl.zeros((COLS,), tl.float32)
    if tile < WINDOW:
        k_0 = tl.load(k_0_ptr + state_at, mask=known, other=0.0)
        v_0 = tl.load(v_0_ptr + state_at, mask=known, other=0.0)
    k_in, v_in, k_out, v_out = hand_on(
        shared_ptr, lane, tile, k_0, v_0, kept, k_sum, v_sum, LANES, COLS, WINDOW, RING
    )
    if tile == row_tiles - 1:
        tl.store(k_last_ptr + state_at, k_out, mask=known)
        tl.store(v_last_ptr + state_at, v_out, mask=known)
    for r in tl.static_range(ROWS):
        inside = (tile * ROWS + r < LENGTH) & known
        at = origin + r * CHANNELS + column
        k_mem = held[r][1] + held[r][0] * k_in
        v_mem = held[r][2] + held[r][0] * v_in
        _store(k_mem_ptr + at, k_mem, inside, EVEN)
        _store(v_mem_ptr + at, v_mem, inside, EVEN)
        if SAVE > 0 and (r + 1) % SAVE == 0:
            saved = (batch * SAVES + tile * (ROWS // SAVE) + r // SAVE) * (2 * CHANNELS) + column
            tl.store(states_ptr + saved, k_mem, mask=known)
            tl.store(states_ptr + saved + CHANNELS, v_mem, mask=known)


@triton.jit
@no_type_check
def backward_kernel(
    gate_ptr, k_ptr, v_ptr, k_0_ptr, v_0_ptr, states_ptr,
    dk_mem_ptr, dv_mem_ptr, dk_last_ptr, dv_last_ptr,
    d_gate_ptr, dk_ptr, dv_ptr, dk_0_ptr, dv_0_ptr, shared_ptr,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr, SAVES: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr, RING: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    column_tiles: tl.constexpr = (CHANNELS + COLS - 1) // COLS
    row_tiles: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    EVEN: tl.constexpr = LENGTH % ROWS == 0 and CHANNELS % COLS == 0
    lane = tl.program_id(0) % LANES
    step = next_tile(shared_ptr, lane, LANES, COLS, WINDOW, RING)
    tile = row_tiles - 1 - step
    batch = (lane // column_tiles).to(tl.int64)
    column = (lane % column_tiles) * COLS + tl.arange(0, COLS)
    known = column < CHANNELS
    origin = (batch * LENGTH + tile * ROWS) * CHANNELS
    state_at = batch * CHANNELS + column
    # The states are known from the start.
    if tile == 0:
        h_k = tl.load(k_0_ptr + state_at, mask=known, other=0.0)
        h_v = tl.load(v_0_ptr + state_at, mask=known, other=0.0)
    else:
        saved = (batch * SAVES + tile - 1) * (2 * CHANNELS) + column
        h_k = tl.load(states_ptr + saved, mask=known, other=0.0)
        h_v = tl.load(states_ptr + saved + CHANNELS, mask=known, other=0.0)

    # s_t = dy_t + c_{t+1} is the gradient of the state, c_t = g_t s_t what position t hands to the
    # one before it. One walk takes the states along and sums up c by prefix products.
    # (h_{t-1} - x_t) g_t = h_t - x_t: what the gate's gradient needs of the states.
    kept = tl.full((COLS,), 1.0, tl.float32)
    ck_sum = tl.zeros((COLS,), tl.float32)
    cv_sum = tl.zeros((COLS,), tl.float32)
    held = ()
    for r in tl.static_range(ROWS):
        inside = (tile * ROWS + r < LENGTH) & known
        at = origin + r * CHANNELS + column
        gate, k, v = _load_row(gate_ptr, k_ptr, v_ptr, at, inside, EVEN)
        keep, take = _weights(gate)
        k, v = k.to(tl.float32), v.to(tl.float32)
        kept *= keep
        h_k = keep * h_k + take * k
        h_v = keep * h_v + take * v
        ck_sum += kept * _load(dk_mem_ptr + at, inside, 0.0, EVEN).to(tl.float32)
        cv_sum += kept * _load(dv_mem_ptr + at, inside, 0.0, EVEN).to(tl.float32)
        held = held + ((h_k - k, h_v - v),)  # noqa: RUF005

    last_k = tl.zeros((COLS,), tl.float32)
    last_v = tl.zeros((COLS,), tl.float32)
    if step < WINDOW:
        last_k = tl.load(dk_last_ptr + state_at, mask=known, other=0.0)
        last_v = tl.load(dv_last_ptr + state_at, mask=known, other=0.0)
    c_k, c_v, ck_out, cv_out = hand_on(
        shared_ptr, lane, step, last_k, last_v, kept, ck_sum, cv_sum, LANES, COLS, WINDOW, RING
    )
    if tile == 0:
        tl.store(dk_0_ptr + state_at, ck_out, mask=known)
        tl.store(dv_0_ptr + state_at, cv_out, mask=known)
    # What the last walk reads again waits in the cache. The compiler moves no load across a store,
    # so AHEAD rows are asked for before they are needed.
    coming = ()
    for i in tl.static_range(AHEAD):
        inside = (tile * ROWS + ROWS - 1 - i < LENGTH) & known
        at = origin + (ROWS - 1 - i) * CHANNELS + column
        row = _load_row(gate_ptr, dk_mem_ptr, dv_mem_ptr, at, inside, EVEN)
        coming = coming + (row,)  # noqa: RUF005
    for r in tl.static_range(ROWS - 1, -1, -1):
        if r >= AHEAD:
            inside = (tile * ROWS + r - AHEAD < LENGTH) & known
            at = origin + (r - AHEAD) * CHANNELS + column
            row = _load_row(gate_ptr, dk_mem_ptr, dv_mem_ptr, at, inside, EVEN)
            coming = coming + (row,)  # noqa: RUF005
        inside = (tile * ROWS + r < LENGTH) & known
        at = origin + r * CHANNELS + column
        keep, take = _weights(coming[ROWS - 1 - r][0])
        s_k = coming[ROWS - 1 - r][1].to(tl.float32) + c_k
        s_v = coming[ROWS - 1 - r][2].to(tl.float32) + c_v
        d_gate = (s_k * held[r][0] + s_v * held[r][1]) * take
        _store(d_gate_ptr + at, d_gate, inside, EVEN)
        _store(dk_ptr + at, take * s_k, inside, EVEN)
        _store(dv_ptr + at, take * s_v, inside, EVEN)
        c_k = keep * s_k
        c_v = keep * s_v
