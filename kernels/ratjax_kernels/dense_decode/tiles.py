"""Pieces that the decode kernels are made of: one tile of keys, and what several splits make.

With a head of its own for every query (R = 1) a tile never touches the matrix units: each row of a
tile keeps its own running maximum, sum and weighted values, so the loop over keys needs no exchange
between warps and no shared memory; rows are put together once, at the end. Where R queries share a
key/value head they are the rows of a matrix product, R padded to 16, and each key is read once.

A long cache is cut into splits, one program each. Every program leaves its unnormalised average;
the last to arrive, by a counter, puts all of them together in the order of the splits: the same
bits whoever is last. Exponentials are base 2, with log2(e) in the scale.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ratjax_kernels.triton_call import INTERPRETED

# Triton's interpreter multiplies the bits of narrow numbers as if they were integers.
_WIDEN = tl.constexpr(INTERPRETED)

# Numbers of all heads' splits that a program of 4 warps can hold in registers.
_MOST_AT_ONCE = tl.constexpr(8192)


@triton.jit
@no_type_check
def product(a, b, PRECISION: tl.constexpr):
    """a @ b, accumulated in float32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
@no_type_check
def finite(top):
    """The maximum to subtract: zero where nothing was seen, since -inf - -inf is NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
@no_type_check
def vector_step(q, k, v, valid, top, total, mean, scale):
    """Takes in a tile: q [D], k and v [N, D] (zero where not `valid` [N]), states by row."""
    score = tl.sum(q[None, :] * k.to(tl.float32), axis=1) * scale
    score = tl.where(valid, score, float("-inf"))
    new = tl.maximum(top, score)
    keep = tl.exp2(top - finite(new))
    weight = tl.exp2(score - finite(new))
    total = total * keep + weight
    mean = mean * keep[:, None] + weight[:, None] * v.to(tl.float32)
    return new, total, mean


@triton.jit
@no_type_check
def vector_collapse(top, total, mean):
    """The rows' states as one: [1], [1] and [1, D]."""
    best = tl.max(top, axis=0, keep_dims=True)
    weight = tl.exp2(top - finite(best))
    total = tl.sum(total * weight, axis=0, keep_dims=True)
    return best, total, tl.sum(mean * weight[:, None], axis=0, keep_dims=True)


@triton.jit
@no_type_check
def matrix_step(q, k, v, valid, top, total, mean, scale, PRECISION: tl.constexpr):
    """As `vector_step` for q [16, D]; states by query: [16], [16] and [16, D]."""
    score = product(q, tl.trans(k), PRECISION) * scale
    score = tl.where(valid[None, :], score, float("-inf"))
    new = tl.maximum(top, tl.max(score, axis=1))
    keep = tl.exp2(top - finite(new))
    weight = tl.exp2(score - finite(new)[:, None])
    total = total * keep + tl.sum(weight, axis=1)
    mean = mean * keep[:, None] + product(weight.to(v.dtype), v, PRECISION)
    return new, total, mean


@triton.jit
@no_type_check
def _read_splits(
    part_ptr, stats_ptr, head,
    D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """What the splits of one head left. Past the first-level cache: others wrote them."""
    piece, channel = tl.arange(0, SP), tl.arange(0, DP)
    real, known = piece < SPLITS, channel < D
    at = head * SPLITS + piece
    top = tl.load(stats_ptr + at * 2, mask=real, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(stats_ptr + at * 2 + 1, mask=real, other=0.0, cache_modifier=".cg")
    mean = tl.load(
        part_ptr + at[:, None] * D + channel[None, :],
        mask=real[:, None] & known[None, :],
        other=0.0,
        cache_modifier=".cg",
    )
    return top, total, mean


@triton.jit
@no_type_check
def _write_head(out_ptr, head, splits, D: tl.constexpr, DP: tl.constexpr):
    """The output of one head, put together from its `splits`."""
    channel = tl.arange(0, DP)
    _, total, mean = vector_collapse(splits[0], splits[1], splits[2])
    mean = mean / tl.where(total == 0, 1.0, total)[:, None]
    place = out_ptr + head * D + channel[None, :]
    tl.store(place, mean.to(out_ptr.dtype.element_ty), mask=(channel < D)[None, :])


@triton.jit
@no_type_check
def finish(
    out_ptr, part_ptr, stats_ptr, counter_ptr, first_head, group, split, top, total, mean,
    R: tl.constexpr, RP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    SPLITS: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Writes the outputs of R heads, if this program is the last of its splits."""
    row, channel = tl.arange(0, RP), tl.arange(0, DP)
    known = channel < D
    inside = (row < R)[:, None] & known[None, :]
    if SPLITS == 1:
        mean = mean / tl.where(total == 0, 1.0, total)[:, None]
        at = (first_head + row)[:, None] * D + channel[None, :]
        tl.store(out_ptr + at, mean.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        at = (first_head + row) * SPLITS + split
        tl.store(part_ptr + at[:, None] * D + channel[None, :], mean, mask=inside)
        tl.store(stats_ptr + at * 2, top, mask=row < R)
        tl.store(stats_ptr + at * 2 + 1, total, mask=row < R)
        # All of this program's stores before its count; all counts before the reads.
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + group, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            if R * SP * DP <= _MOST_AT_ONCE:
                # All heads are on their way before the first is written: one wait instead of R.
                heads = ()
                for r in tl.static_range(R):
                    splits = _read_splits(part_ptr, stats_ptr, first_head + r, D, DP, SPLITS, SP)
                    heads = heads + (splits,)  # noqa: RUF005
                for r in tl.static_range(R):
                    _write_head(out_ptr, first_head + r, heads[r], D, DP)
            else:
                for r in range(R):
                    splits = _read_splits(part_ptr, stats_ptr, first_head + r, D, DP, SPLITS, SP)
                    _write_head(out_ptr, first_head + r, splits, D, DP)
