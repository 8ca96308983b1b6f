"""How tiles of a sequence hand the state on, in order, while all of them run.

A tile is one program, and which tile of its lane it is, it asks a counter when it starts. So it
waits only for programs that already run, in whatever order a GPU starts them: by its own number it
would do so only where they start in the order of their numbers, which is not promised
(github.com/NVIDIA/cub/issues/245).

What a tile waits for is the number itself: a word of 64 bits carries a float and the tag of who
wrote it, and is written and read whole. No flag, no fence and no second round trip through the
cache stand between neighbours, and a tag that is not the expected one means "not yet", whatever was
there before. So the words live in short rings that stay in the cache.

WINDOW = 1: every tile waits for the state that leaves the tile before it. Two places take turns: a
tile overwrites the state that entered the tile before it, which that tile has read before it wrote
what this one has read.

WINDOW > 1, where few channels would make that chain of tiles the limit: a tile waits for the state
that left the window of WINDOW tiles before its own, and composes it with the totals (what a tile
keeps of the state, and what it adds) of the tiles in between, which wait for nothing. Each tile
says when it has read all it needs; a tile that comes RING tiles later waits for that before it
writes to the same places.

All of it lies in one array, which is zero at the start: the words, the totals, the marks.
"""

from typing import no_type_check

import triton
import triton.language as tl


def places(lanes: int, cols: int, window: int, ring: int) -> int:
    """How many int32 the chains of a launch need, zero at the start.

    Args:
      lanes: chains.
      cols: channels of a tile.
      window: WINDOW.
      ring: RING; 0 where the window is 1.
    """
    slots = 2 if window == 1 else ring // window
    return lanes * (2 * (slots * 2 + ring * 3) * cols + 1 + ring)


@triton.jit
@no_type_check
def _marks(
    shared_ptr, lane, LANES: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """Of a lane: how many of its tiles were started, then a mark for each place of its ring."""
    SLOTS: tl.constexpr = 2 if WINDOW == 1 else RING // WINDOW
    return shared_ptr + LANES * 2 * (SLOTS * 2 + RING * 3) * COLS + lane * (1 + RING)


@triton.jit
@no_type_check
def next_tile(
    shared_ptr, lane, LANES: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr,
    RING: tl.constexpr,
):  # fmt: skip
    """How many tiles of this lane were started before: which one this program is; see `hand_on`."""
    started = _marks(shared_ptr, lane, LANES, COLS, WINDOW, RING)
    return tl.atomic_add(started, 1, sem="relaxed")


@triton.jit
@no_type_check
def _post(words, at, value, tag):
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    tl.store(words + at, (bits << 32) | tag)


@triton.jit
@no_type_check
def _value(word):
    return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _here(word, tag):
    return word.to(tl.int32) == tag


@triton.jit
@no_type_check
def _all(x):
    return tl.min(x.to(tl.int32), axis=0) != 0


@triton.jit
@no_type_check
def _wait(words, at, tag, COLS: tl.constexpr):
    """The numbers at `at` [COLS] and COLS further.

    Every thread loads words of its own (COLS is a multiple of the threads). Were there fewer, some
    would load copies, each at its own moment, and the test would see only one of them.
    """
    k = tl.load(words + at, volatile=True)
    v = tl.load(words + at + COLS, volatile=True)
    while not _all(_here(k, tag) & _here(v, tag)):
        k = tl.load(words + at, volatile=True)
        v = tl.load(words + at + COLS, volatile=True)
    return _value(k), _value(v)


@triton.jit
@no_type_check
def _totals_before(
    totals, lane, step, own, COLS: tl.constexpr, WINDOW: tl.constexpr, RING: tl.constexpr
):
    """What the tiles of this window before tile `step` keep and add, composed."""
    before = step % WINDOW
    kept = tl.full((COLS,), 1.0, tl.float32)
    k = tl.zeros((COLS,), tl.float32)
    v = tl.zeros((COLS,), tl.float32)
    for far in tl.static_range(WINDOW - 1, 0, -1):
        inside = far <= before
        at = (lane * RING + (step - far) % RING) * (3 * COLS) + own
        tag = tl.where(inside, step - far + 1, 0)
        a_word = tl.load(totals + at, mask=inside, other=0, volatile=True)
        k_word = tl.load(totals + at + COLS, mask=inside, other=0, volatile=True)
        v_word = tl.load(totals + at + 2 * COLS, mask=inside, other=0, volatile=True)
        while not _all(_here(a_word, tag) & _here(k_word, tag) & _here(v_word, tag)):
            a_word = tl.load(totals + at, mask=inside, other=0, volatile=True)
            k_word = tl.load(totals + at + COLS, mask=inside, other=0, volatile=True)
            v_word = tl.load(totals + at + 2 * COLS, mask=inside, other=0, volatile=True)
        a = tl.where(inside, _value(a_word), 1.0)
        kept *= a
        k = a * k + _value(k_word)
        v = a * v + _value(v_word)
    return kept, k, v


@triton.jit
@no_type_check
def _wait_for_readers(done, step, own, WINDOW: tl.constexpr, RING: tl.constexpr):
    """Until the tiles that read what is about to be overwritten have read it.

    There are WINDOW marks, and every thread looks at one, so that all that were loaded are tested:
    see `_wait`.
    """
    if step >= RING:
        # A tile further on may have overwritten the mark of its own reading: later is as good.
        reader = step - RING + 1 + own % WINDOW
        while not _all(tl.load(done + reader % RING, volatile=True) > reader):
            pass


@triton.jit
@no_type_check
def hand_on(
    shared_ptr, lane, step, first_k, first_v, kept, k_sum, v_sum,
    LANES: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr, RING: tl.constexpr,
):  # fmt: skip
    """The states that enter and leave tile number `step` of a lane of tiles.

    Args:
      shared_ptr: int32 [places(LANES, COLS, WINDOW, RING)], zero before the launch.
      lane: which chain.
      step: which tile of the chain, in the order of the chain: what `next_tile` gave.
      first_k, first_v: [COLS], what enters the first window; unused elsewhere.
      kept, k_sum, v_sum: [COLS]; the tile makes k_sum + kept * k of a state k, the same for v.

    Returns:
      (k entering, v entering, k leaving, v leaving), each [COLS].
    """
    SLOTS: tl.constexpr = 2 if WINDOW == 1 else RING // WINDOW
    words = shared_ptr.to(tl.pointer_type(tl.int64), bitcast=True)
    totals = words + LANES * SLOTS * 2 * COLS
    done = _marks(shared_ptr, lane, LANES, COLS, WINDOW, RING) + 1
    own = tl.arange(0, COLS)
    window = step // WINDOW
    if WINDOW > 1:
        _wait_for_readers(done, step, own, WINDOW, RING)
        if step % WINDOW < WINDOW - 1:
            at = (lane * RING + step % RING) * (3 * COLS) + own
            _post(totals, at, kept, step + 1)
            _post(totals, at + COLS, k_sum, step + 1)
            _post(totals, at + 2 * COLS, v_sum, step + 1)
        kept_w, k_w, v_w = _totals_before(totals, lane, step, own, COLS, WINDOW, RING)
    if window == 0:
        k_in, v_in = first_k, first_v
    else:
        at = (lane * SLOTS + (window - 1) % SLOTS) * (2 * COLS) + own
        k_in, v_in = _wait(words, at, window, COLS)
    if WINDOW > 1:
        tl.store(done + step % RING, step + 1)
        k_in = k_w + kept_w * k_in
        v_in = v_w + kept_w * v_in
    k_out = k_sum + kept * k_in
    v_out = v_sum + kept * v_in
    if step % WINDOW == WINDOW - 1:
        at = (lane * SLOTS + window % SLOTS) * (2 * COLS) + own
        _post(words, at, k_out, window + 1)
        _post(words, at + COLS, v_out, window + 1)
    return k_in, v_in, k_out, v_out
