"""Paged attention through the Triton kernels of this package."""

import math

import jax
import jax.numpy as jnp

from ratjax_kernels.dense_decode.triton import (
    fitted,
    multiprocessors,
    scratch,
)
from ratjax_kernels.layers import as_stack, merge_layers
from ratjax_kernels.paged_decode import bounds_kernels, triton_kernels
from ratjax_kernels.triton_call import device_problem, launch, power_of_two, precision

# Slots of a tile, warps, pipeline depth; fastest of those measured on an H100.
VECTOR = {"N": 32, "num_warps": 4, "PIPELINE": 3}
MATRIX = {"N": 64, "num_warps": 4, "PIPELINE": 3}
# Pages of a tile of bounds.
SCORES = {"N": 16, "num_warps": 2}
# Programs a multiprocessor, and the slots below which a split does not pay for itself.
_WAVES, _LEAST_SHARE, _MOST_SPLITS = 8, 256, 64
# The rank of a page and its tie are counted in int32 registers of one program.
_MOST_PAGES = 16384


def share_of_pages(rows: int, listed: int, page_size: int) -> int:
    """Pages of a split: enough splits to fill the device, none too short to pay for itself."""
    wanted = max(math.ceil(_WAVES * multiprocessors() / rows), 1)
    least = max(math.ceil(_LEAST_SHARE / page_size), math.ceil(listed / _MOST_SPLITS))
    return min(max(listed // wanted, least), listed)


def limits_of_page_scores(q, k_min, k_max, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(q, k_min, k_max)


def page_scores(q, k_min, k_max, layer):
    """See `ratjax_kernels.paged_decode.api`."""
    layer, k_min, k_max = as_stack(layer, k_min, k_max)
    return _scores(layer, k_min, k_max, q)


@merge_layers(stacked=2)
def _scores(layer, k_min, k_max, q):
    return _launch_scores(layer, k_min, k_max, q, clear=False)[0]


def _launch_scores(layer, k_min, k_max, q, clear):
    batch, pages, kv_heads, channels = k_min.shape[1:]
    heads = q.shape[2]
    return launch(
        bounds_kernels.scores_kernel,
        (q, k_min, k_max, layer),
        (
            jax.ShapeDtypeStruct((batch, heads, pages), jnp.float32),
            jax.ShapeDtypeStruct((batch * heads if clear else 1,), jnp.int32),
        ),
        grid=(batch * kv_heads * math.ceil(pages / SCORES["N"]),),
        BATCH=batch,
        P=pages,
        HEADS=heads,
        R=heads // kv_heads,
        D=channels,
        DP=power_of_two(channels, 16),
        CLEAR=clear,
        **SCORES,
    )


def limits_of_paged_decode(q, k, v, lengths, page_ids, page_size, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(q, k, v)


def paged_decode(q, k, v, lengths, page_ids, page_size, layer):
    """See `ratjax_kernels.paged_decode.api`."""
    layer, k, v = as_stack(layer, k, v)

    @merge_layers(stacked=2)
    def run(layer, k, v, q, lengths, page_ids):
        return _launch_listed(layer, k, v, q, lengths, page_ids, page_size)

    return run(layer, k, v, q, lengths, page_ids)


def _launch_listed(layer, k, v, q, lengths, page_ids, page_size):
    batch, _, lists = k.shape[1], k.shape[2], page_ids.shape[1]
    heads, channels = q.shape[2:]
    listed = page_ids.shape[2]
    alone = lists == heads
    rows = batch * lists
    constants = _constants(k, q, listed, page_size, rows)
    out = (
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        *scratch(batch * heads, rows, constants["SPLITS"], channels),
    )
    grid, zeroed = (rows * constants["SPLITS"],), constants["SPLITS"] > 1
    if not alone:
        del constants["SHP"]
        return launch(
            triton_kernels.matrix_kernel,
            (q, k, v, lengths, layer, page_ids),
            out,
            grid=grid,
            zeroed=(3,) if zeroed else (),
            RP=power_of_two(heads // lists, 16),
            PRECISION=precision(k.dtype),
            **constants,
            **fitted(MATRIX, channels, k.dtype.itemsize, 16),
        )[0]
    nothing = jax.ShapeDtypeStruct((1,), jnp.int32)
    return launch(
        triton_kernels.vector_kernel,
        (q, k, v, lengths, layer, page_ids, lengths),
        (out[0], nothing, *out[1:]),
        grid=grid,
        zeroed=(4,) if zeroed else (),
        SELECT=False,
        P=1,
        PP=1,
        FIRST=False,
        CURRENT=False,
        **constants,
        **fitted(VECTOR, channels, k.dtype.itemsize),
    )[0]


def limits_of_quest_decode(
    q, k, v, lengths, k_min, k_max, page_size, pages, force_first, force_current, layer
):
    """See `ratjax_kernels.dispatch.Operation`."""
    if k_min.shape[-3] > _MOST_PAGES:
        return f"serves up to {_MOST_PAGES} pages, not {k_min.shape[-3]}"
    return device_problem(q, k, v, k_min, k_max)


def quest_decode(
    q, k, v, lengths, k_min, k_max, page_size, pages, force_first, force_current, layer
):
    """See `ratjax_kernels.paged_decode.api`."""
    layer, *stacks = as_stack(layer, k, v, k_min, k_max)

    @merge_layers(stacked=4)
    def run(layer, k, v, k_min, k_max, q, lengths):
        return _launch_quest(
            layer, k, v, k_min, k_max, q, lengths, page_size, pages, force_first, force_current
        )

    return run(layer, *stacks, q, lengths)


def _launch_quest(
    layer, k, v, k_min, k_max, q, lengths, page_size, pages, force_first, force_current
):
    batch = k.shape[1]
    heads, channels = q.shape[2:]
    rows = batch * heads
    scores, counter = _launch_scores(layer, k_min, k_max, q, clear=True)
    constants = _constants(k, q, pages, page_size, rows)
    partial, stats, _ = scratch(rows, rows, constants["SPLITS"], channels)
    out, page_ids, *_ = launch(
        triton_kernels.vector_kernel,
        (q, k, v, lengths, layer, scores, counter),
        (
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, pages), jnp.int32),
            partial,
            stats,
            jax.ShapeDtypeStruct(counter.shape, jnp.int32),
        ),
        grid=(rows * constants["SPLITS"],),
        aliases={6: 4},
        SELECT=True,
        P=scores.shape[2],
        PP=power_of_two(scores.shape[2]),
        FIRST=force_first,
        CURRENT=force_current,
        **constants,
        **fitted(VECTOR, channels, k.dtype.itemsize),
    )
    return out, page_ids


def _constants(k, q, listed, page_size, rows):
    batch, slots, kv_heads, channels = k.shape[1:]
    share = share_of_pages(rows, listed, page_size)
    splits = math.ceil(listed / share)
    return {
        "BATCH": batch,
        "SLOTS": slots,
        "HEADS": q.shape[2],
        "R": q.shape[2] // kv_heads,
        "D": channels,
        "DP": power_of_two(channels, 16),
        "SCALE": channels**-0.5 * math.log2(math.e),
        "PAGE": page_size,
        "K": listed,
        "SHARE": share,
        "SHP": power_of_two(share),
        "SPLITS": splits,
        "SP": power_of_two(splits),
    }
