"""Page statistics on a TPU: the bounds of pages, and their products with the queries.

`bounds_kernel` reads each key once for both bounds and stores 1 / page_size of what it reads.
`scores_kernel` needs no maximum of two products: where q is positive the greatest key gives it,
elsewhere the least, so the bound is one product of q's positive part and one of its negative part,
which the matrix units take with R queries on sublanes and pages on lanes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.dense_decode.pallas_tiles import product
from ratjax_kernels.pallas_call import LANES, SUBLANES, Kernel, largest_divisor, rows_of_tile

# Slots of a step of `bounds_kernel`; heads and pages of a step of `scores_kernel`.
_SLOTS, _HEADS, _PAGES = 2048, 8, 512
_ACROSS = (((1,), (1,)), ((), ()))


def bounds_kernel(page_size, lengths_ref, k_ref, low_ref, high_ref, low_rows, high_rows):
    """k [pages * page_size, D]; outputs [pages, D]; scratch of their shape in float32."""
    pages, channels = low_ref.shape
    length = lengths_ref[pl.program_id(0)]
    begin = pl.program_id(2) * pages * page_size
    row = lax.broadcasted_iota(jnp.int32, (page_size, channels), 0)

    def one_page(j, _):
        at = pl.multiple_of(j * page_size, page_size)
        k = k_ref[pl.ds(at, page_size), :].astype(jnp.float32)
        filled = begin + at + row < length
        low = jnp.where(filled, k, jnp.inf)
        high = jnp.where(filled, k, -jnp.inf)
        low_rows[pl.ds(j, 1), :] = jnp.min(low, axis=0, keepdims=True)
        high_rows[pl.ds(j, 1), :] = jnp.max(high, axis=0, keepdims=True)
        return 0

    lax.fori_loop(0, pages, one_page, 0)
    low_ref[...] = low_rows[...].astype(low_ref.dtype)
    high_ref[...] = high_rows[...].astype(high_ref.dtype)


def bounds(k, page_size) -> Kernel:
    """The kernel for keys [B, G, S, D] (or their shape)."""
    batch, kv_heads, slots, channels = k.shape
    pages = -(-slots // page_size)
    tile = rows_of_tile(k.dtype)
    together = min(max(_SLOTS // page_size // tile, 1) * tile, -(-pages // tile) * tile)
    block = pl.BlockSpec((None, None, together, channels), lambda b, g, p, *_: (b, g, p, 0))
    keys = pl.BlockSpec(
        (None, None, together * page_size, channels), lambda b, g, p, *_: (b, g, p, 0)
    )
    out = jax.ShapeDtypeStruct((batch, kv_heads, pages, channels), k.dtype)
    return Kernel(
        functools.partial(bounds_kernel, page_size),
        "page_bounds",
        (batch, kv_heads, -(-pages // together)),
        (k,),
        (keys,),
        (out, out),
        (block, block),
        scratch=(pltpu.VMEM((together, channels), jnp.float32),) * 2,
        scalars=1,
        semantics=("parallel",) * 3,
        cost=pl.CostEstimate(
            flops=2 * math.prod(k.shape),
            transcendentals=0,
            bytes_accessed=(math.prod(k.shape) + 2 * math.prod(out.shape)) * k.dtype.itemsize,
        ),
    )


def scores_kernel(layer_ref, q_ref, low_ref, high_ref, out_ref):
    """q [heads, R, D], bounds [heads, pages, D], out [heads, R, pages]."""
    del layer_ref
    heads, queries, channels = q_ref.shape
    for head in range(heads):
        q = q_ref[head].astype(jnp.float32)
        low, high = (ref[head].astype(jnp.float32) for ref in (low_ref, high_ref))
        # An empty page's bounds are infinite, and zero times infinity is NaN.
        empty = low > high
        low, high = (jnp.where(empty, 0.0, x).astype(low_ref.dtype) for x in (low, high))
        score = product(jnp.maximum(q, 0.0).astype(q_ref.dtype), high, _ACROSS)
        score += product(jnp.minimum(q, 0.0).astype(q_ref.dtype), low, _ACROSS)
        # The matrix units also bring a mark on every row of `low` to the lanes of `score`.
        ones = jnp.ones((queries, channels), jnp.bfloat16)
        marks = product(ones, empty.astype(jnp.float32).astype(jnp.bfloat16), _ACROSS)
        out_ref[head] = jnp.where(marks > 0, -jnp.inf, score)


def scores(q, k_min) -> Kernel:
    """The kernel for queries [B, G, R, D] and bounds [L, B, G, P, D] (or their shapes)."""
    batch, kv_heads, queries, channels = q.shape
    pages = k_min.shape[3]
    block = largest_divisor(kv_heads, _HEADS if batch > 1 else min(_HEADS, max(kv_heads // 2, 1)))
    row = block * -(-channels // LANES) * LANES * k_min.dtype.itemsize
    together = _PAGES
    while together > LANES and together * row > 2**20:
        together //= 2
    edge = pl.BlockSpec(
        (None, None, block, together, channels), lambda b, g, p, layer: (layer[0], b, g, p, 0)
    )
    return Kernel(
        scores_kernel,
        "page_scores",
        (batch, kv_heads // block, -(-pages // together)),
        (q, k_min, k_min),
        (
            pl.BlockSpec((None, block, queries, channels), lambda b, g, p, *_: (b, g, 0, 0)),
            edge,
            edge,
        ),
        (jax.ShapeDtypeStruct((batch, kv_heads, queries, pages), jnp.float32),),
        (pl.BlockSpec((None, block, queries, together), lambda b, g, p, *_: (b, g, 0, p)),),
        scalars=1,
        semantics=("parallel",) * 3,
        cost=pl.CostEstimate(
            flops=4 * math.prod(q.shape) * pages,
            transcendentals=0,
            bytes_accessed=2 * batch * kv_heads * pages * channels * k_min.dtype.itemsize,
        ),
    )


def rows_of_queries(group: int) -> int:
    """Sublanes that a group's query heads take."""
    return -(-group // SUBLANES) * SUBLANES
