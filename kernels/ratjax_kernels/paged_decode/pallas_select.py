"""Quest's choice of pages on a TPU core: the threshold by bisection, then every page's place.

Heads stand on sublanes, pages on lanes. The K-th best score is found bit by bit among integers of
the scores' order; of those that equal it the first ones are in. Ranks are running sums, which the
matrix units make, 128 pages at a time, as products with a triangle of ones.

For 32 heads, 512 pages and 16 of them that is some 3000 instructions for everything, by count about
1 us; a sort moves every score through all its stages. Nothing was timed on a TPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.pallas_call import LANES, SUBLANES, Kernel, pad_to, padded_bytes

# The extremes of int32, which no finite score has: forced, and no candidate.
_MOST, _LEAST = 2**31 - 1, -(2**31)
# Arrays of all scores that the body holds beside its blocks, as the compiler was seen to have it:
# on v5e 32 heads of 20480 pages fit, and those of 21760 do not.
_VALUES = 3.5


def select_kernel(
    page_size, pages, force_first, force_current, lengths_ref, scores_ref, ids_ref, rank_ref
):
    """scores [heads, pages], padded to whole registers; ids [heads, K], likewise."""
    length = lengths_ref[pl.program_id(0)]
    current = jnp.where(length > 0, lax.div(length - 1, page_size), -1)
    page = lax.broadcasted_iota(jnp.int32, scores_ref.shape, 1)
    value = _ordered(scores_ref[...])
    if force_first:
        value = jnp.where(page == 0, _MOST, value)
    if force_current:
        value = jnp.where(page == current, _MOST, value)
    value = jnp.where(page <= current, value, _LEAST)

    bound = jnp.where(_count(value >= 0) >= pages, 0, _LEAST)

    def next_bit(step, bound):
        higher = bound | lax.shift_left(1, 30 - step)
        return jnp.where(_count(value >= higher) >= pages, higher, bound)

    bound = lax.fori_loop(0, 31, next_bit, bound)
    above = value > bound
    equal = (value == bound) & (value > _LEAST)
    _running_sum(equal, rank_ref)
    chosen = above | (equal & (rank_ref[...] <= pages - _count(above)))
    _running_sum(chosen, rank_ref)
    rank = jnp.where(chosen, rank_ref[...], 0.0)
    place = lax.broadcasted_iota(jnp.int32, ids_ref.shape, 1)

    def next_place(at, ids):
        here = jnp.where(rank == (at + 1).astype(jnp.float32), page + 1, 0)
        found = jnp.sum(here.astype(jnp.float32), axis=1, keepdims=True).astype(jnp.int32)
        return jnp.where(place == at, found - 1, ids)

    # Places without a page hold the sum of nothing, less one.
    ids_ref[...] = lax.fori_loop(
        0, pages, next_place, jnp.full(ids_ref.shape, -1, jnp.int32), unroll=min(pages, 4)
    )


def _ordered(score):
    """Integers in the order of finite numbers; what is infinite counts as the largest number."""
    largest = jnp.finfo(jnp.float32).max
    score = jnp.clip(score, -largest, largest)
    bits = lax.bitcast_convert_type(jnp.where(score == 0, 0.0, score), jnp.int32)
    return jnp.where(bits >= 0, bits, bits ^ _MOST)


def _count(marks):
    """Of each head: [heads, 1]. Whole numbers below 2^24 are exact in float32."""
    return jnp.sum(marks.astype(jnp.float32), axis=1, keepdims=True)


def _running_sum(marks, out_ref):
    """Of each head, over its pages, the own one included."""
    row, column = (lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    triangle = (row <= column).astype(jnp.float32).astype(jnp.bfloat16)
    before = jnp.zeros((marks.shape[0], 1), jnp.float32)
    for at in range(0, marks.shape[1], LANES):
        part = marks[:, at : at + LANES].astype(jnp.float32)
        sums = jnp.dot(part.astype(jnp.bfloat16), triangle, preferred_element_type=jnp.float32)
        out_ref[:, at : at + LANES] = before + sums
        before += jnp.sum(part, axis=1, keepdims=True)


def select(scores, lengths, page_size, pages, force_first, force_current):
    """`ratjax_kernels.selection.select_pages` of scores [B, H, P]."""
    chosen = kernel(scores, page_size, pages, force_first, force_current)
    (ids,) = chosen(lengths, pad_to(scores, 2, chosen.inputs[0].shape[2]))
    return ids[:, :, :pages]


def kernel(scores, page_size, pages, force_first, force_current) -> Kernel:
    """The kernel for scores [B, H, P] (or their shape), which it takes padded.

    All heads at once, or as many of them as fit: each is on its own.
    """
    batch, heads, available = scores.shape
    padded, width = (-(-size // LANES) * LANES for size in (available, pages))
    body = functools.partial(select_kernel, page_size, pages, force_first, force_current)

    def of(part):
        def block(width):
            return pl.BlockSpec((None, part, width), lambda b, h, *_: (b, h, 0))

        return Kernel(
            body,
            "select_pages",
            (batch, heads // part),
            (jax.ShapeDtypeStruct((batch, heads, padded), jnp.float32),),
            (block(padded),),
            (jax.ShapeDtypeStruct((batch, heads, width), jnp.int32),),
            (block(width),),
            scratch=(pltpu.VMEM((part, padded), jnp.float32),),
            scalars=1,
            semantics=("parallel", "parallel"),
            values=int(_VALUES * padded_bytes((part, padded), jnp.float32)),
            cost=pl.CostEstimate(
                flops=batch * heads * padded * (2 * 31 + 3 * pages),
                transcendentals=0,
                bytes_accessed=4 * batch * heads * (padded + width),
            ),
        )

    parts = [n for n in range(heads, 0, -1) if heads % n == 0 and (n == heads or n % SUBLANES == 0)]
    return next((k for k in map(of, parts) if not k.problem()), of(parts[-1]))
