"""The recurrence on CUDA: one pass over memory, forward and backward.

The [T, C] plane of a sequence is cut into tiles of `GROUPS * RUN` positions by `COLS` channels, one
program each. A thread walks along `RUN` consecutive positions, which costs two multiply-adds a
number; only the groups' totals go through an associative scan, whose exchanges between threads
cost several times that. The second walk finds its inputs in the cache.

A tile then needs one number a channel: the state that leaves the tile before it. Programs are
numbered with all channels of the first positions first and a GPU starts them in that order, so a
program waits only for programs that already run. It waits on the state itself: state and "ready"
mark share one 64-bit word, which is written and read whole, so no fence and no second round trip
through the cache stand between neighbours. Every element crosses the memory bus once each way.

Backward walks the tiles from the end the same way. It recomputes the states of its tile from the
words that forward left behind (the state entering each tile), so forward keeps nothing else.

`no_type_check` keeps import hooks that wrap functions away from what Triton reads as source.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.triton_call import INTERPRETED

# Positions of a run, channels and warps of a tile: the fastest of those measured on an H100.
TILE = {"RUN": 4, "COLS": 32}
WARPS = 4

_NAN_WORD = tl.constexpr(~0x7FC00000)
_PRECISE = tl.constexpr(INTERPRETED)  # the interpreter knows no machine instructions


@triton.jit
@no_type_check
def _compose(a_1, k_1, v_1, a_2, k_2, v_2):
    return a_2 * a_1, a_2 * k_1 + k_2, a_2 * v_1 + v_2


@triton.jit
@no_type_check
def _multiply(a, b):
    return a * b


@triton.jit
@no_type_check
def _weights(gate):
    """s(x) and s(-x) from one exponential and one reciprocal; exact at both infinities."""
    if _PRECISE:
        e = tl.exp(-tl.abs(gate))
        r = 1.0 / (1.0 + e)
    else:
        # The machine's own instructions: Triton's exponential and division spend several more
        # on denormals, which 1 + e swallows. The relative error stays near 2^-22.
        e = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;",
            "=f,f",
            [tl.abs(gate) * -1.4426950408889634],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
        r = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1
        )
    small = e * r
    return tl.where(gate >= 0, r, small), tl.where(gate >= 0, small, r)


@triton.jit
@no_type_check
def _load(at, inside, fill: tl.constexpr, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(at)
    return tl.load(at, mask=inside, other=fill)


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
def _shifted(x, entry, group, STEP: tl.constexpr, GROUPS: tl.constexpr):
    """Row i becomes row i + STEP of `x` [GROUPS, COLS]; where there is none, that of `entry`."""
    source = group + STEP
    index = tl.minimum(tl.maximum(source, 0), GROUPS - 1)[:, None]
    moved = tl.gather(x, tl.broadcast_to(index, x.shape), axis=0)
    return tl.where(((source >= 0) & (source < GROUPS))[:, None], moved, entry)


@triton.jit
@no_type_check
def _row(x, group, at: tl.constexpr):
    """Row `at` of `x`."""
    return tl.sum(tl.where((group == at)[:, None], x, 0.0), axis=0)


@triton.jit
@no_type_check
def _post(words, at, value, rows):
    """Leaves the numbers of `rows` where `_value` finds them; zero: nothing is there yet."""
    word = value.to(tl.int32, bitcast=True) ^ -1
    tl.store(words + at, tl.where(word == 0, _NAN_WORD, word), mask=rows)


@triton.jit
@no_type_check
def _value(word):
    return (word ^ -1).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _wait(words, k_at, v_at):
    """The numbers at `k_at` and `v_at` [GROUPS, COLS], once they are there.

    Every thread loads words of its own. Were the places fewer than the threads, several threads
    would load one word each at its own moment, and the test would see only one of them.
    """
    k_word = tl.load(words + k_at, volatile=True)
    v_word = tl.load(words + v_at, volatile=True)
    while tl.min(tl.min(((k_word != 0) & (v_word != 0)).to(tl.int32), axis=1), axis=0) == 0:
        k_word = tl.load(words + k_at, volatile=True)
        v_word = tl.load(words + v_at, volatile=True)
    return _value(k_word), _value(v_word)


@triton.jit
@no_type_check
def _wait_for_totals(totals, at, step, before, column, PLANE: tl.constexpr, WINDOW: tl.constexpr):
    """The composition of the `before` (less than WINDOW) tiles that end at the tile before `at`.

    `step` is -1 where the state comes from earlier positions, 1 where it comes from later ones.
    """
    i = tl.arange(0, WINDOW)
    # Row i holds what the tile i + 1 steps away adds, and what the tile i steps away keeps of it.
    adds = (i < before)[:, None]
    keeps = ((i > 0) & (i <= before))[:, None]
    place = ((at + step * i) * (3 * PLANE))[:, None] + column[None, :]
    next_place = place + step * (3 * PLANE)
    kept = tl.load(totals + place, mask=keeps, other=-1, volatile=True)
    k = tl.load(totals + next_place + PLANE, mask=adds, other=-1, volatile=True)
    v = tl.load(totals + next_place + 2 * PLANE, mask=adds, other=-1, volatile=True)
    while tl.min(tl.min(((kept != 0) & (k != 0) & (v != 0)).to(tl.int32), axis=1), axis=0) == 0:
        kept = tl.load(totals + place, mask=keeps, other=-1, volatile=True)
        k = tl.load(totals + next_place + PLANE, mask=adds, other=-1, volatile=True)
        v = tl.load(totals + next_place + 2 * PLANE, mask=adds, other=-1, volatile=True)
    weight = tl.associative_scan(tl.where(keeps, _value(kept), 1.0), 0, _multiply)
    k = tl.sum(tl.where(adds, weight * _value(k), 0.0), axis=0)
    v = tl.sum(tl.where(adds, weight * _value(v), 0.0), axis=0)
    return tl.sum(tl.where((i == before)[:, None], weight, 0.0), axis=0), k, v


@triton.jit
@no_type_check
def forward_kernel(
    gate_ptr, k_ptr, v_ptr, k_0_ptr, v_0_ptr,
    k_mem_ptr, v_mem_ptr, k_last_ptr, v_last_ptr, words_ptr, totals_ptr,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, RUN: tl.constexpr, COLS: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = GROUPS * RUN
    column_tiles: tl.constexpr = (CHANNELS + COLS - 1) // COLS
    row_tiles: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    tile, lane = tl.program_id(0) // LANES, tl.program_id(0) % LANES
    batch = (lane // column_tiles).to(tl.int64)
    group = tl.arange(0, GROUPS)
    at = (tile * ROWS + group * RUN)[:, None]
    column = (lane % column_tiles) * COLS + tl.arange(0, COLS)
    known = column < CHANNELS
    # 64-bit arithmetic once a program, 32-bit within its tile.
    origin = (batch * LENGTH + tile * ROWS) * CHANNELS
    offset = (group * RUN)[:, None] * CHANNELS + column[None, :]
    gate_at = gate_ptr + origin + offset
    k_at = k_ptr + origin + offset
    v_at = v_ptr + origin + offset
    k_mem_at = k_mem_ptr + origin + offset
    v_mem_at = v_mem_ptr + origin + offset
    EVEN: tl.constexpr = LENGTH % ROWS == 0 and CHANNELS % COLS == 0

    kept = tl.full((GROUPS, COLS), 1.0, tl.float32)
    k_sum = tl.zeros((GROUPS, COLS), tl.float32)
    v_sum = tl.zeros((GROUPS, COLS), tl.float32)
    for r in tl.static_range(RUN):
        # Positions past the end keep the state: gate one, nothing taken in.
        inside = (at + r < LENGTH) & known[None, :]
        gate = _load(gate_at + r * CHANNELS, inside, float("inf"), EVEN)
        k = _load(k_at + r * CHANNELS, inside, 0.0, EVEN)
        v = _load(v_at + r * CHANNELS, inside, 0.0, EVEN)
        keep, take = _weights(gate.to(tl.float32))
        kept *= keep
        k_sum = keep * k_sum + take * k.to(tl.float32)
        v_sum = keep * v_sum + take * v.to(tl.float32)
    kept, k_sum, v_sum = tl.associative_scan((kept, k_sum, v_sum), 0, _compose)

    # [batch, row tile, keys or values, channel]
    plane: tl.constexpr = column_tiles * COLS
    everywhere = tl.broadcast_to(column[None, :], (GROUPS, COLS))
    post_at = ((batch * row_tiles + tile) * 2) * plane + everywhere
    state_at = batch * CHANNELS + everywhere
    last = tl.broadcast_to((group == GROUPS - 1)[:, None], (GROUPS, COLS))
    before = tile % WINDOW
    if WINDOW > 1:
        totals = totals_ptr + batch * row_tiles * 3 * plane
        wanted = last & (before < WINDOW - 1)
        _post(totals, (tile * 3) * plane + everywhere, kept, wanted)
        _post(totals, (tile * 3 + 1) * plane + everywhere, k_sum, wanted)
        _post(totals, (tile * 3 + 2) * plane + everywhere, v_sum, wanted)
    if tile == before:
        k_in = tl.load(k_0_ptr + state_at, mask=known[None, :], other=0.0)
        v_in = tl.load(v_0_ptr + state_at, mask=known[None, :], other=0.0)
    else:
        entry = post_at - (before + 1) * (2 * plane)
        k_in, v_in = _wait(words_ptr, entry, entry + plane)
    if WINDOW > 1 and before > 0:
        kept_w, k_w, v_w = _wait_for_totals(totals, tile, -1, before, column, plane, WINDOW)
        k_in = k_w[None, :] + kept_w[None, :] * k_in
        v_in = v_w[None, :] + kept_w[None, :] * v_in
    k_out = k_sum + kept * k_in
    v_out = v_sum + kept * v_in
    _post(words_ptr, post_at, k_out, last)
    _post(words_ptr, post_at + plane, v_out, last)
    if tile == row_tiles - 1:
        tl.store(k_last_ptr + state_at, k_out, mask=last & known[None, :])
        tl.store(v_last_ptr + state_at, v_out, mask=last & known[None, :])

    k_mem = _shifted(k_out, k_in, group, -1, GROUPS)
    v_mem = _shifted(v_out, v_in, group, -1, GROUPS)
    for r in tl.static_range(RUN):
        inside = (at + r < LENGTH) & known[None, :]
        gate = _load(gate_at + r * CHANNELS, inside, float("inf"), EVEN)
        k = _load(k_at + r * CHANNELS, inside, 0.0, EVEN)
        v = _load(v_at + r * CHANNELS, inside, 0.0, EVEN)
        keep, take = _weights(gate.to(tl.float32))
        k_mem = keep * k_mem + take * k.to(tl.float32)
        v_mem = keep * v_mem + take * v.to(tl.float32)
        _store(k_mem_at + r * CHANNELS, k_mem, inside, EVEN)
        _store(v_mem_at + r * CHANNELS, v_mem, inside, EVEN)


@triton.jit
@no_type_check
def backward_kernel(
    gate_ptr, k_ptr, v_ptr, k_0_ptr, v_0_ptr, states_ptr,
    dk_mem_ptr, dv_mem_ptr, dk_last_ptr, dv_last_ptr,
    d_gate_ptr, dk_ptr, dv_ptr, dk_0_ptr, dv_0_ptr, words_ptr, totals_ptr,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, RUN: tl.constexpr, COLS: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = GROUPS * RUN
    column_tiles: tl.constexpr = (CHANNELS + COLS - 1) // COLS
    row_tiles: tl.constexpr = (LENGTH + ROWS - 1) // ROWS
    tile, lane = row_tiles - 1 - tl.program_id(0) // LANES, tl.program_id(0) % LANES
    batch = (lane // column_tiles).to(tl.int64)
    group = tl.arange(0, GROUPS)
    at = (tile * ROWS + group * RUN)[:, None]
    column = (lane % column_tiles) * COLS + tl.arange(0, COLS)
    known = column < CHANNELS
    origin = (batch * LENGTH + tile * ROWS) * CHANNELS
    offset = (group * RUN)[:, None] * CHANNELS + column[None, :]
    gate_at = gate_ptr + origin + offset
    k_at = k_ptr + origin + offset
    v_at = v_ptr + origin + offset
    dk_mem_at = dk_mem_ptr + origin + offset
    dv_mem_at = dv_mem_ptr + origin + offset
    d_gate_at = d_gate_ptr + origin + offset
    dk_at = dk_ptr + origin + offset
    dv_at = dv_ptr + origin + offset
    EVEN: tl.constexpr = LENGTH % ROWS == 0 and CHANNELS % COLS == 0

    # s_t = dy_t + c_{t+1} is the gradient of the state, c_t = g_t s_t what position t hands to the
    # one before it. One walk sums up both directions: the states forward, c by prefix products.
    kept = tl.full((GROUPS, COLS), 1.0, tl.float32)
    k_sum = tl.zeros((GROUPS, COLS), tl.float32)
    v_sum = tl.zeros((GROUPS, COLS), tl.float32)
    ck_sum = tl.zeros((GROUPS, COLS), tl.float32)
    cv_sum = tl.zeros((GROUPS, COLS), tl.float32)
    for r in tl.static_range(RUN):
        inside = (at + r < LENGTH) & known[None, :]
        gate = _load(gate_at + r * CHANNELS, inside, float("inf"), EVEN)
        k = _load(k_at + r * CHANNELS, inside, 0.0, EVEN)
        v = _load(v_at + r * CHANNELS, inside, 0.0, EVEN)
        dk_mem = _load(dk_mem_at + r * CHANNELS, inside, 0.0, EVEN)
        dv_mem = _load(dv_mem_at + r * CHANNELS, inside, 0.0, EVEN)
        keep, take = _weights(gate.to(tl.float32))
        kept *= keep
        k_sum = keep * k_sum + take * k.to(tl.float32)
        v_sum = keep * v_sum + take * v.to(tl.float32)
        ck_sum += kept * dk_mem.to(tl.float32)
        cv_sum += kept * dv_mem.to(tl.float32)
    h_kept, k_sum, v_sum = tl.associative_scan((kept, k_sum, v_sum), 0, _compose)
    kept, ck_sum, cv_sum = tl.associative_scan((kept, ck_sum, cv_sum), 0, _compose, reverse=True)
    plane: tl.constexpr = column_tiles * COLS
    everywhere = tl.broadcast_to(column[None, :], (GROUPS, COLS))
    post_at = ((batch * row_tiles + tile) * 2) * plane + everywhere
    state_at = batch * CHANNELS + everywhere
    first = tl.broadcast_to((group == 0)[:, None], (GROUPS, COLS))
    before = (row_tiles - 1 - tile) % WINDOW
    if WINDOW > 1:
        totals = totals_ptr + batch * row_tiles * 3 * plane
        wanted = first & (before < WINDOW - 1)
        _post(totals, (tile * 3) * plane + everywhere, kept, wanted)
        _post(totals, (tile * 3 + 1) * plane + everywhere, ck_sum, wanted)
        _post(totals, (tile * 3 + 2) * plane + everywhere, cv_sum, wanted)
    if tile + before == row_tiles - 1:
        ck_in = tl.load(dk_last_ptr + state_at, mask=known[None, :], other=0.0)
        cv_in = tl.load(dv_last_ptr + state_at, mask=known[None, :], other=0.0)
    else:
        entry = post_at + (before + 1) * (2 * plane)
        ck_in, cv_in = _wait(words_ptr, entry, entry + plane)
    if WINDOW > 1 and before > 0:
        kept_w, k_w, v_w = _wait_for_totals(totals, tile, 1, before, column, plane, WINDOW)
        ck_in = k_w[None, :] + kept_w[None, :] * ck_in
        cv_in = v_w[None, :] + kept_w[None, :] * cv_in
    ck_out = ck_sum + kept * ck_in
    cv_out = cv_sum + kept * cv_in
    _post(words_ptr, post_at, ck_out, first)
    _post(words_ptr, post_at + plane, cv_out, first)
    if tile == 0:
        tl.store(dk_0_ptr + state_at, ck_out, mask=first & known[None, :])
        tl.store(dv_0_ptr + state_at, cv_out, mask=first & known[None, :])
        k_in = tl.load(k_0_ptr + state_at, mask=known[None, :], other=0.0)
        v_in = tl.load(v_0_ptr + state_at, mask=known[None, :], other=0.0)
    else:
        k_in = _value(tl.load(states_ptr + post_at - 2 * plane))
        v_in = _value(tl.load(states_ptr + post_at - plane))
    c_k = _shifted(ck_out, ck_in, group, 1, GROUPS)
    c_v = _shifted(cv_out, cv_in, group, 1, GROUPS)
    h_k = _shifted(k_sum + h_kept * k_in, k_in, group, -1, GROUPS)
    h_v = _shifted(v_sum + h_kept * v_in, v_in, group, -1, GROUPS)

    # The gate's gradient pairs states, which run forward, with c, which runs backward: the changes
    # along a run wait in registers. (h_{t-1} - x_t) g_t = h_t - x_t.
    k_changes = ()
    v_changes = ()
    for r in tl.static_range(RUN):
        inside = (at + r < LENGTH) & known[None, :]
        gate = _load(gate_at + r * CHANNELS, inside, float("inf"), EVEN)
        k = _load(k_at + r * CHANNELS, inside, 0.0, EVEN)
        v = _load(v_at + r * CHANNELS, inside, 0.0, EVEN)
        keep, take = _weights(gate.to(tl.float32))
        h_k = keep * h_k + take * k.to(tl.float32)
        h_v = keep * h_v + take * v.to(tl.float32)
        k_changes = k_changes + (h_k - k.to(tl.float32),)  # noqa: RUF005
        v_changes = v_changes + (h_v - v.to(tl.float32),)  # noqa: RUF005
    for r in tl.static_range(RUN - 1, -1, -1):
        inside = (at + r < LENGTH) & known[None, :]
        gate = _load(gate_at + r * CHANNELS, inside, float("inf"), EVEN)
        dk_mem = _load(dk_mem_at + r * CHANNELS, inside, 0.0, EVEN)
        dv_mem = _load(dv_mem_at + r * CHANNELS, inside, 0.0, EVEN)
        keep, take = _weights(gate.to(tl.float32))
        s_k = dk_mem.to(tl.float32) + c_k
        s_v = dv_mem.to(tl.float32) + c_v
        d_gate = (s_k * k_changes[r] + s_v * v_changes[r]) * take
        _store(d_gate_at + r * CHANNELS, d_gate, inside, EVEN)
        _store(dk_at + r * CHANNELS, take * s_k, inside, EVEN)
        _store(dv_at + r * CHANNELS, take * s_v, inside, EVEN)
        c_k = keep * s_k
        c_v = keep * s_v
