"""From "the blocks of each query" to what the TPU kernels read: bits and lists.

Both are made by XLA. A query's blocks become one bit each, packed 32 to a word, with an "or" over
the query's list; a tile's list is the "or" of its queries' words, spread out and sorted.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32

_WORD = 32


def _either(x, axis: int):
    return lax.reduce(x, np.int32(0), lax.bitwise_or, (axis,))


def bits_of(
    ids: Int32[Array, "B H T K"], blocks: int, block_size: int
) -> Int32[Array, "B H T words"]:
    """Bit p % 32 of word p // 32: block p is listed, and has begun."""
    position = jnp.arange(ids.shape[2], dtype=jnp.int32)[:, None]
    real = (ids >= 0) & (ids <= position // block_size)
    bit = jnp.where(real, jnp.left_shift(jnp.int32(1), ids % _WORD), 0)
    word = jnp.arange(-(-blocks // _WORD), dtype=jnp.int32)
    return _either(jnp.where((ids // _WORD)[..., None] == word, bit[..., None], 0), 3)


def lists_of(
    bits: Int32[Array, "B H T words"], blocks: int, tile: int, at_once: int
) -> Int32[Array, "B H tiles 1 entries"]:
    """For each tile of queries, how many blocks its queries list, then which, ascending.

    T is a multiple of `tile`. The last block stands on until the end, so that what is read behind
    the list's end, `at_once` at a time, is a block that some query of the tile reads.
    """
    batch, heads, length, words = bits.shape
    union = _either(bits.reshape(batch, heads, length // tile, tile, words), 3)
    spread = lax.shift_right_logical(
        union[..., None],
        jnp.broadcast_to(jnp.arange(_WORD, dtype=jnp.int32), (*union.shape, _WORD)),
    )
    listed = (spread & 1).reshape(*union.shape[:3], words * _WORD)[..., :blocks] == 1
    ascending = jnp.sort(jnp.where(listed, jnp.arange(blocks, dtype=jnp.int32), blocks), axis=-1)
    count = listed.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    entries = -(-blocks // at_once) * at_once
    ascending = jnp.pad(ascending, [(0, 0)] * 3 + [(0, entries - blocks)], constant_values=blocks)
    last = jnp.where(listed, jnp.arange(blocks, dtype=jnp.int32), 0).max(axis=-1, keepdims=True)
    ascending = jnp.where(ascending < blocks, ascending, last)
    return jnp.concatenate([count, ascending], axis=-1)[:, :, :, None]
