"""`dense_decode` through the Triton kernels of `ratjax_kernels.dense_decode.triton_kernels`."""

import math

import jax
import jax.numpy as jnp

from ratjax_kernels.dense_decode import triton_kernels
from ratjax_kernels.layers import as_stack, merge_layers
from ratjax_kernels.triton_call import (
    SMALL_SHARED_MEMORY,
    capability,
    device_problem,
    launch,
    power_of_two,
    precision,
)

# Keys of a tile, warps, pipeline depth; fastest of those measured on an H100.
VECTOR = {"N": 32, "num_warps": 4, "PIPELINE": 4}
MATRIX = {"N": 128, "num_warps": 4, "PIPELINE": 3}
# Bytes of the queries that share a key head: beyond the first, tiles have fewer keys, as both lie
# in shared memory; beyond the second, nothing fits (half of it where shared memory is small).
_FEW_QUERIES, _MOST_QUERIES = 8 << 10, 32 << 10
# Splits are not shorter than this, and no more of them than one program can put together at once.
_LEAST_CHUNK, _MOST_SPLITS = 512, 64
# Where splits this long fill the device, shorter ones would only start and end more often.
VECTOR_CHUNK, MATRIX_CHUNK = 1024, 2048
# Programs a multiprocessor: several waves, so that the last one is short beside the rest.
_WAVES = 16


def multiprocessors() -> int:
    """Of the default device; those of an H100 where there is none."""
    return getattr(jax.devices()[0], "core_count", None) or 132


def chunk_of_slots(rows: int, slots: int, tile: int, long: int) -> int:
    """Slots of a split: enough splits to fill the device, none too short to pay for itself."""
    wanted = math.ceil(_WAVES * multiprocessors() / rows)
    one_wave = math.ceil(slots * rows / multiprocessors())
    least = min(max(one_wave, _LEAST_CHUNK), long)
    chunk = max(slots // max(wanted, 1), least, math.ceil(slots / _MOST_SPLITS))
    return min(math.ceil(chunk / tile), math.ceil(slots / tile)) * tile


def fitted(tuned: dict, channels: int, itemsize: int, least: int = 8) -> dict:
    """`tuned`, with fewer rows a tile where rows are longer than the 256 bytes it was tuned for."""
    row_bytes = max(power_of_two(channels, 16) * itemsize, 256)
    if capability() in SMALL_SHARED_MEMORY:
        row_bytes *= 2
    return {**tuned, "N": max(tuned["N"] * 256 // row_bytes, least)}


def limits_of_dense_decode(q, k, v, lengths, mask, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    heads, kv_heads, channels = q.shape[2], k.shape[-2], q.shape[-1]
    most = _MOST_QUERIES // (2 if capability() in SMALL_SHARED_MEMORY else 1)
    most //= power_of_two(channels, 16) * k.dtype.itemsize
    if heads // kv_heads > max(most, 1):
        return f"serves {most} query heads a key head at most, not {heads // kv_heads}"
    if heads > kv_heads and q.dtype != k.dtype:  # the products are of one type
        return f"serves queries in the keys' {k.dtype} where heads share keys, not {q.dtype}"
    return device_problem(q, k, v)


def dense_decode(q, k, v, lengths, mask, layer):
    """See `ratjax_kernels.dense_decode.api`."""
    layer, k, v = as_stack(layer, k, v)
    if mask is None:
        return _plain(layer, k, v, q, lengths)
    return _masked(layer, k, v, q, lengths, mask.astype(jnp.int8))


@merge_layers(stacked=2)
def _plain(layer, k, v, q, lengths):
    return _launch(layer, k, v, q, lengths, None)


@merge_layers(stacked=2)
def _masked(layer, k, v, q, lengths, mask):
    return _launch(layer, k, v, q, lengths, mask)


def _launch(layer, k, v, q, lengths, mask):
    batch, slots, kv_heads, channels = k.shape[1:]
    heads = q.shape[2]
    group = heads // kv_heads
    size = k.dtype.itemsize
    padded = power_of_two(group, 16)
    tuned = fitted(VECTOR, channels, size)
    if group > 1:
        tuned = fitted(MATRIX, channels, size, 16)
        queries = padded * power_of_two(channels, 16) * size
        tuned["N"] = max(tuned["N"] * _FEW_QUERIES // max(queries, _FEW_QUERIES), 16)
    rows = batch * kv_heads
    long = VECTOR_CHUNK if group == 1 else MATRIX_CHUNK
    chunk = chunk_of_slots(rows, slots, tuned["N"], long)
    splits = math.ceil(slots / chunk)
    constants = {
        "BATCH": batch,
        "SLOTS": slots,
        "HEADS": heads,
        "R": group,
        "D": channels,
        "DP": power_of_two(channels, 16),
        "SCALE": channels**-0.5 * math.log2(math.e),
        "MASKED": mask is not None,
        "CHUNK": chunk,
        "SPLITS": splits,
        "SP": power_of_two(splits),
        **tuned,
    }
    kernel = triton_kernels.vector_kernel
    if group > 1:
        kernel = triton_kernels.matrix_kernel
        constants |= {"RP": padded, "PRECISION": precision(k.dtype)}
    return launch(
        kernel,
        (q, k, v, lengths, layer, lengths if mask is None else mask),
        (jax.ShapeDtypeStruct(q.shape, q.dtype), *scratch(batch * heads, rows, splits, channels)),
        grid=(rows * splits,),
        zeroed=(3,) if splits > 1 else (),
        **constants,
    )[0]


def scratch(heads: int, rows: int, splits: int, channels: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What the splits leave for each other: averages, (maximum, sum), and the counter."""
    if splits == 1:
        heads = rows = channels = 1
    return (
        jax.ShapeDtypeStruct((heads, splits, channels), jnp.float32),
        jax.ShapeDtypeStruct((heads, splits, 2), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
