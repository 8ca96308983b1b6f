"""`block_select` and `block_prefill` on CUDA, through the Triton kernels beside this file.

Both directions of the attention work block by block: a block's keys and values are multiplied with
dense tiles of the queries that list it, gathered from a list that is built by counting. What
belongs to a query is left at its entries, [T, K, D] in the inputs' dtype, and added up in order,
so nothing is atomic and a second run gives the same bits. That array is not kept for backward.
"""

import functools
import math

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.block_prefill import triton_launch as stages
from ratjax_kernels.block_prefill.triton_launch import Lists, Sizes
from ratjax_kernels.triton_call import (
    device_problem,
    power_of_two,
    shared_memory_problem,
)

_MOST_BLOCKS = 4096
_MOST_SELECTED_FROM = 1024
_MOST_KEPT = 64
_MOST_CHANNELS = 256
# Keys or values of a tile wait in shared memory while a list is walked; float32 ones in parts.
_TILE_BYTES = {2: 2**15, 4: 2**14}


def limits_of_block_select(q, means, block_size, blocks, force_first):
    """See `ratjax_kernels.dispatch.Operation`."""
    if means.shape[1] > _MOST_SELECTED_FROM:
        return f"chooses among at most {_MOST_SELECTED_FROM} blocks, not {means.shape[1]}"
    if blocks > _MOST_KEPT:
        return f"keeps at most {_MOST_KEPT} blocks, not {blocks}"
    if q.shape[3] > _MOST_CHANNELS:
        return f"serves at most {_MOST_CHANNELS} channels, not {q.shape[3]}"
    return _numbering_problem(q) or device_problem(q, means)


def _numbering_problem(q) -> str | None:
    """Kernels number a sequence's elements in 32 bits."""
    elements = math.prod(q.shape[1:])
    if elements >= 2**31:
        return f"serves fewer than 2^31 query elements a sequence, not {elements}"
    return None


def block_select(q, means, block_size, blocks, force_first):
    """See `ratjax_kernels.block_prefill.api`."""
    run = functools.partial(_select, block_size, blocks, force_first)
    return merge_vmap(run)(jax.lax.stop_gradient(q), jax.lax.stop_gradient(means))


def _select(block_size, blocks, force_first, q, means):
    means = jnp.moveaxis(means, 1, 2)  # [B, G, P, D]
    parts = []
    if q.dtype == jnp.bfloat16:
        for _ in range(3):  # 3 x 8 bits: all of float32
            part = jax.lax.reduce_precision(means, exponent_bits=8, mantissa_bits=7)
            parts.append(part.astype(jnp.bfloat16))
            means = jnp.where(jnp.isfinite(part), means - part, 0.0)
    else:
        q, parts = q.astype(jnp.float32), [means]
    return stages.select(block_size, blocks, force_first, q, jnp.stack(parts, axis=2))


def limits_of_block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.dispatch.Operation`."""
    if problem := _numbering_problem(q):
        return problem
    length, heads, channels = q.shape[1:]
    if channels > _MOST_CHANNELS:
        return f"serves at most {_MOST_CHANNELS} channels, not {channels}"
    tile = _tile_of_keys(block_size, channels, jnp.result_type(q, k, v).itemsize)
    if not tile:
        return f"cannot cut block_size={block_size} into equal tiles of 16 to 128 positions"
    kept = block_ids.shape[3] * (block_size // tile)
    if kept > _MOST_KEPT:
        return f"serves lists of at most {_MOST_KEPT} tiles of {tile} positions, not {kept}"
    if -(-length // tile) > _MOST_BLOCKS:
        return f"serves at most {_MOST_BLOCKS} tiles of {tile} positions, not length {length}"
    if length * (heads // k.shape[2]) * kept * channels >= 2**31:
        return f"cannot number the entries of length {length} with lists of {kept}"
    return device_problem(q, k, v) or shared_memory_problem()


def block_prefill(q, k, v, block_ids, block_size):
    """See `ratjax_kernels.block_prefill.api`."""
    dtype = jnp.result_type(q, k, v)
    tile = _tile_of_keys(block_size, q.shape[3], dtype.itemsize)
    if tile < block_size:
        pieces = block_size // tile
        listed = block_ids[..., None] * pieces + jnp.arange(pieces, dtype=jnp.int32)
        block_ids = jnp.where(block_ids[..., None] < 0, -1, listed)
        block_ids = block_ids.reshape(*block_ids.shape[:3], -1)
    return _attention(tile, *(x.astype(dtype) for x in (q, k, v)), block_ids).astype(q.dtype)


def _tile_of_keys(block_size: int, channels: int, itemsize: int) -> int:
    """The positions treated at once: the block, or a divisor of it; 0 where that is too small."""
    most = min(128, _TILE_BYTES[itemsize] // (power_of_two(channels, 16) * itemsize))
    if block_size <= most:
        return block_size
    found = max(n for n in range(1, most + 1) if block_size % n == 0)
    return found if found >= 16 else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(block_size, q, k, v, block_ids):
    return _forward(block_size, q, k, v, block_ids)[0]


def _forward(block_size, q, k, v, block_ids):
    run = merge_vmap(functools.partial(_run_forward, block_size))
    out, *rest = run(q, k, v, block_ids)
    return out, (q, k, v, out, *rest)


def _backward(block_size, residuals, d_out):
    run = merge_vmap(functools.partial(_run_backward, block_size))
    return *run(d_out, *residuals), None


_attention.defvjp(_forward, _backward)


def sizes_of(block_size, q, k, ids) -> Sizes:
    batch, length, heads, channels = q.shape
    return Sizes(batch, length, heads, k.shape[2], channels, block_size, ids.shape[3], q.dtype)


def _run_forward(block_size, q, k, v, block_ids):
    sizes = sizes_of(block_size, q, k, block_ids)
    ids, lists = stages.make_lists(sizes, block_ids)
    parts, part_lse = stages.visit(sizes, q, k, v, lists)
    near = stages.local(sizes, q, k, v, ids)
    return *stages.merge(sizes, ids, parts, part_lse, *near), ids, *lists


def delta_of(sizes, d_out, out):
    """sum(d_out * out) over the channels, [B, G, N]: what softmax takes from each gradient."""
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)  # [B, T, H]
    delta = delta.reshape(sizes.batch, sizes.length, sizes.kv_heads, -1)
    return jnp.moveaxis(delta, 2, 1).reshape(sizes.batch, sizes.kv_heads, -1)


def _run_backward(block_size, d_out, q, k, v, out, lse, ids, *lists):
    sizes, lists = sizes_of(block_size, q, k, ids), Lists(*lists)
    delta = delta_of(sizes, d_out, out)
    dk, dv, parts, *sums = stages.gradients(sizes, q, k, v, d_out, lse, delta, lists)
    dk, dv = stages.add_segments(sizes, dk, dv, *sums, lists)
    return stages.add_entries(sizes, parts, ids), dk, dv
