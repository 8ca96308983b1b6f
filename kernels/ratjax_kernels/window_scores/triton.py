"""`window_scores` through the Triton kernels of `ratjax_kernels.window_scores.triton_kernels`."""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.triton_call import (
    device_problem,
    launch,
    power_of_two,
    precision,
    shared_memory_problem,
)
from ratjax_kernels.window_scores.triton_kernels import (
    merge_kernel,
    totals_kernel,
    votes_kernel,
)

_WIDEST = 256  # channels; a tile of keys and the queries must fit into shared memory


class Tiling(NamedTuple):
    """Queries and keys of a tile, warps, pipeline depth."""

    queries: int
    keys: int
    warps: int
    stages: int


# The fastest of those measured on an H100 at head dim 128; wider heads take smaller tiles.
_NARROW = {"totals": Tiling(128, 64, 8, 3), "votes": Tiling(256, 64, 4, 3)}
_WIDE = {"totals": Tiling(64, 64, 4, 2), "votes": Tiling(64, 64, 4, 2)}
# float32 is multiplied without tensor cores: small tiles, or registers run out.
_FLOAT32 = {"totals": Tiling(32, 32, 4, 2), "votes": Tiling(32, 32, 4, 2)}

# Keys of a program: few enough that all multiprocessors have work, enough to load queries for.
_STRETCHES = (256, 2048)
_ENOUGH_PROGRAMS = 512


def limits_of_window_scores(q, k, lengths):
    """See `ratjax_kernels.dispatch.Operation`."""
    if q.shape[-1] > _WIDEST:
        return f"serves head dims up to {_WIDEST}, not {q.shape[-1]}"
    return device_problem(q, k) or shared_memory_problem()


def window_scores(q, k, lengths):
    """See `ratjax_kernels.window_scores.api`."""
    dtype = jnp.promote_types(q.dtype, k.dtype)
    return _launch(q.astype(dtype), k.astype(dtype), lengths)


def tiling_of(kernel: str, dtype, padded: int) -> Tiling:
    """How `kernel` is cut up for `padded` channels of `dtype`."""
    if dtype == jnp.float32:
        return _FLOAT32[kernel]
    return (_NARROW if padded <= 128 else _WIDE)[kernel]


def stretch_of(lanes: int, slots: int) -> int:
    """Keys that one program walks over."""
    least, most = _STRETCHES
    stretch = least
    while stretch < most and lanes * slots >= 2 * stretch * _ENOUGH_PROGRAMS:
        stretch *= 2
    return stretch


@merge_vmap
def _launch(q, k, lengths):
    batch, window, heads, channels = q.shape
    slots, kv_heads = k.shape[1:3]
    padded = power_of_two(channels, 16)
    rows = window * heads // kv_heads
    lanes = batch * kv_heads
    stretch = stretch_of(lanes, slots)
    splits = -(-slots // stretch)
    constants = {
        "SLOTS": slots,
        "WINDOW": window,
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "CHANNELS": channels,
        "PADDED": padded,
        "LOG2_SCALE": channels**-0.5 * math.log2(math.e),
        "PRECISION": precision(q.dtype),
        "SPLITS": splits,
        "STRETCH": stretch,
    }
    totals, votes = (tiling_of(name, q.dtype, padded) for name in ("totals", "votes"))
    # Both kernels cut the rows into whole tiles; the larger count of rows serves both.
    fewest = power_of_two(rows, 16)
    totals_rows, votes_rows = min(totals.queries, fewest), min(votes.queries, fewest)
    widest = max(totals_rows, votes_rows)
    all_rows = -(-rows // widest) * widest
    blocks = all_rows // totals_rows
    parts = launch(
        totals_kernel,
        (q, k, lengths),
        (jax.ShapeDtypeStruct((lanes, splits, all_rows), jnp.float32),),
        grid=(lanes * splits * blocks,),
        num_warps=totals.warps,
        num_stages=totals.stages,
        BLOCKS=blocks,
        ROWS=totals_rows,
        COLS=totals.keys,
        **constants,
    )
    merge_rows = min(32, all_rows)
    lse = launch(
        merge_kernel,
        parts,
        (jax.ShapeDtypeStruct((lanes, all_rows), jnp.float32),),
        grid=(lanes, all_rows // merge_rows),
        num_warps=4,
        num_stages=1,
        SPLITS=splits,
        PADDED_SPLITS=power_of_two(splits),
        ALL_ROWS=all_rows,
        ROWS=merge_rows,
    )
    blocks = all_rows // votes_rows
    parts = launch(
        votes_kernel,
        (q, k, lengths, *lse),
        (jax.ShapeDtypeStruct((batch, blocks, kv_heads, slots), jnp.float32),),
        grid=(lanes * splits * blocks,),
        num_warps=votes.warps,
        num_stages=votes.stages,
        BLOCKS=blocks,
        ROWS=votes.keys,
        COLS=votes_rows,
        **constants,
    )[0]
    return functools.reduce(operator.add, (parts[:, block] for block in range(blocks)))
