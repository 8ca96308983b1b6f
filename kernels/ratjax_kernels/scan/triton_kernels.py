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

# Positions of a run, channels and warps of a tile: the fastest of those measured on an H100.
TILE = {"RUN": 4, "COLS": 32}
WARPS = 4


@triton.jit
@no_type_check
def _compose(a_1, k_1, v_1, a_2, k_2, v_2):
    return a_2 * a_1, a_2 * k_1 + k_2, a_2 * v_1 + v_2


@triton.jit
@no_type_check
def _weights(gate):
    # One exponential for s(x) and s(-x); exact at both infinities.
    e = tl.exp(-tl.abs(gate))
    r = 1.0 / (1.0 + e)
    return tl.where(gate >= 0, r, e * r), tl.where(gate >= 0, e * r, r)


@triton.jit
@no_type_check
def _load(ptr, offset, inside, fill: tl.constexpr):
    return tl.load(ptr + offset, mask=inside, other=fill).to(tl.float32)


@triton.jit
@no_type_check
def _shifted(total, group, STEP: tl.constexpr, GROUPS: tl.constexpr, fill: tl.constexpr):
    """Row i becomes row i + STEP of `total` [GROUPS, COLS]; rows from outside are `fill`."""
    source = group + STEP
    index = tl.minimum(tl.maximum(source, 0), GROUPS - 1)[:, None]
    moved = tl.gather(total, tl.broadcast_to(index, total.shape), axis=0)
    return tl.where(((source >= 0) & (source < GROUPS))[:, None], moved, fill)


@triton.jit
@no_type_check
def _row(total, group, at: tl.constexpr):
    """Row `at` of `total` [GROUPS, COLS]."""
    return tl.sum(tl.where((group == at)[:, None], total, 0.0), axis=0)


@triton.jit
@no_type_check
def _post(words, at, value):
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    tl.store(words + at, (bits << 32) | 1)


@triton.jit
@no_type_check
def _value(word):
    return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _wait(words, k_at, v_at):
    # COLS words, one a lane: every warp loads all of them and leaves the loop on what it saw
    # itself. More columns than lanes would spread a word's copies over warps that test only some.
    k_word = tl.load(words + k_at, volatile=True)
    v_word = tl.load(words + v_at, volatile=True)
    while tl.min(k_word & v_word & 1) == 0:
        k_word = tl.load(words + k_at, volatile=True)
        v_word = tl.load(words + v_at, volatile=True)
    return _value(k_word), _value(v_word)


@triton.jit
@no_type_check
def forward_kernel(
    gate_ptr, k_ptr, v_ptr, k_0_ptr, v_0_ptr,
    k_mem_ptr, v_mem_ptr, k_last_ptr, v_last_ptr, words_ptr,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, RUN: tl.constexpr, COLS: tl.constexpr,
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
    gate_ptr += origin
    k_ptr += origin
    v_ptr += origin
    k_mem_ptr += origin
    v_mem_ptr += origin

    kept = tl.full((GROUPS, COLS), 1.0, tl.float32)
    k_sum = tl.zeros((GROUPS, COLS), tl.float32)
    v_sum = tl.zeros((GROUPS, COLS), tl.float32)
    for r in tl.static_range(RUN):
        # Positions past the end keep the state: gate one, nothing taken in.
        inside = (at + r < LENGTH) & known[None, :]
        keep, take = _weights(_load(gate_ptr, offset + r * CHANNELS, inside, float("inf")))
        kept *= keep
        k_sum = keep * k_sum + take * _load(k_ptr, offset + r * CHANNELS, inside, 0.0)
        v_sum = keep * v_sum + take * _load(v_ptr, offset + r * CHANNELS, inside, 0.0)
    kept, k_sum, v_sum = tl.associative_scan((kept, k_sum, v_sum), 0, _compose)

    words = words_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
    plane: tl.constexpr = column_tiles * COLS
    # [batch, row tile, keys or values, channel]
    post_at = ((batch * row_tiles + tile) * 2) * plane + column
    state_at = batch * CHANNELS + column
    kept_all = _row(kept, group, GROUPS - 1)
    k_all = _row(k_sum, group, GROUPS - 1)
    v_all = _row(v_sum, group, GROUPS - 1)
    kept = _shifted(kept, group, -1, GROUPS, 1.0)
    k_sum = _shifted(k_sum, group, -1, GROUPS, 0.0)
    v_sum = _shifted(v_sum, group, -1, GROUPS, 0.0)
    if tile == 0:
        k_in = tl.load(k_0_ptr + state_at, mask=known, other=0.0)
        v_in = tl.load(v_0_ptr + state_at, mask=known, other=0.0)
    else:
        before = post_at - 2 * plane
        k_in, v_in = _wait(words, before, before + plane)
    k_out = k_all + kept_all * k_in
    v_out = v_all + kept_all * v_in
    _post(words, post_at, k_out)
    _post(words, post_at + plane, v_out)
    if tile == row_tiles - 1:
        tl.store(k_last_ptr + state_at, k_out, mask=known)
        tl.store(v_last_ptr + state_at, v_out, mask=known)

    k_mem = k_sum + kept * k_in[None, :]
    v_mem = v_sum + kept * v_in[None, :]
    for r in tl.static_range(RUN):
        inside = (at + r < LENGTH) & known[None, :]
        here = offset + r * CHANNELS
        keep, take = _weights(_load(gate_ptr, here, inside, float("inf")))
        k_mem = keep * k_mem + take * _load(k_ptr, here, inside, 0.0)
        v_mem = keep * v_mem + take * _load(v_ptr, here, inside, 0.0)
        tl.store(k_mem_ptr + here, k_mem.to(k_mem_ptr.dtype.element_ty), mask=inside)
        tl.store(v_mem_ptr + here, v_mem.to(v_mem_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def backward_kernel(
    gate_ptr, k_ptr, v_ptr, k_0_ptr, v_0_ptr, states_ptr,
    dk_mem_ptr, dv_mem_ptr, dk_last_ptr, dv_last_ptr,
    d_gate_ptr, dk_ptr, dv_ptr, dk_0_ptr, dv_0_ptr, words_ptr,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, RUN: tl.constexpr, COLS: tl.constexpr,
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
    gate_ptr += origin
    k_ptr += origin
    v_ptr += origin
    dk_mem_ptr += origin
    dv_mem_ptr += origin
    d_gate_ptr += origin
    dk_ptr += origin
    dv_ptr += origin

    # s_t = dy_t + c_{t+1} is the gradient of the state, c_t = g_t s_t what position t hands to the
    # one before it. One walk sums up both directions: the states forward, c by prefix products.
    kept = tl.full((GROUPS, COLS), 1.0, tl.float32)
    k_sum = tl.zeros((GROUPS, COLS), tl.float32)
    v_sum = tl.zeros((GROUPS, COLS), tl.float32)
    ck_sum = tl.zeros((GROUPS, COLS), tl.float32)
    cv_sum = tl.zeros((GROUPS, COLS), tl.float32)
    for r in tl.static_range(RUN):
        here = offset + r * CHANNELS
        inside = (at + r < LENGTH) & known[None, :]
        keep, take = _weights(_load(gate_ptr, here, inside, float("inf")))
        kept *= keep
        k_sum = keep * k_sum + take * _load(k_ptr, here, inside, 0.0)
        v_sum = keep * v_sum + take * _load(v_ptr, here, inside, 0.0)
        ck_sum += kept * _load(dk_mem_ptr, here, inside, 0.0)
        cv_sum += kept * _load(dv_mem_ptr, here, inside, 0.0)
    h_kept, k_sum, v_sum = tl.associative_scan((kept, k_sum, v_sum), 0, _compose)
    kept, ck_sum, cv_sum = tl.associative_scan((kept, ck_sum, cv_sum), 0, _compose, reverse=True)
    words = words_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
    plane: tl.constexpr = column_tiles * COLS
    post_at = ((batch * row_tiles + tile) * 2) * plane + column
    state_at = batch * CHANNELS + column
    kept_all = _row(kept, group, 0)
    ck_all = _row(ck_sum, group, 0)
    cv_all = _row(cv_sum, group, 0)
    kept = _shifted(kept, group, 1, GROUPS, 1.0)
    ck_sum = _shifted(ck_sum, group, 1, GROUPS, 0.0)
    cv_sum = _shifted(cv_sum, group, 1, GROUPS, 0.0)
    if tile == row_tiles - 1:
        ck_in = tl.load(dk_last_ptr + state_at, mask=known, other=0.0)
        cv_in = tl.load(dv_last_ptr + state_at, mask=known, other=0.0)
    else:
        after = post_at + 2 * plane
        ck_in, cv_in = _wait(words, after, after + plane)
    ck_out = ck_all + kept_all * ck_in
    cv_out = cv_all + kept_all * cv_in
    _post(words, post_at, ck_out)
    _post(words, post_at + plane, cv_out)
    c_k = ck_sum + kept * ck_in[None, :]
    c_v = cv_sum + kept * cv_in[None, :]
    if tile == 0:
        tl.store(dk_0_ptr + state_at, ck_out, mask=known)
        tl.store(dv_0_ptr + state_at, cv_out, mask=known)
        k_in = tl.load(k_0_ptr + state_at, mask=known, other=0.0)
        v_in = tl.load(v_0_ptr + state_at, mask=known, other=0.0)
    else:
        states = states_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
        before = post_at - 2 * plane
        k_in = _value(tl.load(states + before))
        v_in = _value(tl.load(states + before + plane))

    h_kept = _shifted(h_kept, group, -1, GROUPS, 1.0)
    h_k = _shifted(k_sum, group, -1, GROUPS, 0.0) + h_kept * k_in[None, :]
    h_v = _shifted(v_sum, group, -1, GROUPS, 0.0) + h_kept * v_in[None, :]

    # The gate's gradient pairs states, which run forward, with c, which runs backward: the changes
    # along a run wait in registers. (h_{t-1} - x_t) g_t = h_t - x_t.
    k_changes = ()
    v_changes = ()
    for r in tl.static_range(RUN):
        here = offset + r * CHANNELS
        inside = (at + r < LENGTH) & known[None, :]
        keep, take = _weights(_load(gate_ptr, here, inside, float("inf")))
        k = _load(k_ptr, here, inside, 0.0)
        v = _load(v_ptr, here, inside, 0.0)
        h_k = keep * h_k + take * k
        h_v = keep * h_v + take * v
        k_changes = k_changes + (h_k - k,)  # noqa: RUF005
        v_changes = v_changes + (h_v - v,)  # noqa: RUF005
    for r in tl.static_range(RUN - 1, -1, -1):
        here = offset + r * CHANNELS
        inside = (at + r < LENGTH) & known[None, :]
        keep, take = _weights(_load(gate_ptr, here, inside, float("inf")))
        s_k = _load(dk_mem_ptr, here, inside, 0.0) + c_k
        s_v = _load(dv_mem_ptr, here, inside, 0.0) + c_v
        d_gate = (s_k * k_changes[r] + s_v * v_changes[r]) * take
        tl.store(d_gate_ptr + here, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
        tl.store(dk_ptr + here, (take * s_k).to(dk_ptr.dtype.element_ty), mask=inside)
        tl.store(dv_ptr + here, (take * s_v).to(dv_ptr.dtype.element_ty), mask=inside)
        c_k = keep * s_k
        c_v = keep * s_v
