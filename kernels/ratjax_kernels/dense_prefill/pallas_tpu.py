"""JAX's splash attention on TPUs: tiles, layout, and what it does not say about meshes.

It reads [B, heads, T, D]. Queries, keys and values come out of projections and rotations, whose
results XLA can write in that order, so the transposition need not be a copy. Scores are not scaled
inside, so queries are beforehand, which rounds them once more.

Tiles: a grid step costs about 0.35 us beside its work, which is that of a 512 x 512 tile of scores
at 128 channels on a v5p. Larger tiles pay it less often, and a tile of 1024 queries uses each byte
of keys 1024 times, more than the 560 operations a byte of HBM at which a v6e is balanced; smaller
ones compute less of the square that causality masks. `_tile_of` weighs the two. Gradients take two
passes (dq; dk and dv): the fused one keeps a share of dq for each tile of keys, rounded to the
dtype of q, in HBM. These are reasons, not measurements: it has been compiled, not timed.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from ratjax_kernels.manual_axes import unchecked
from ratjax_kernels.pallas_call import LANES, interpret

# Tiles of scores, and how many keys of one are treated at once.
_TILES = {128: 128, 256: 256, 384: 384, 512: 512, 768: 384, 1024: 512}
_STEP = 512 * 512  # scores that cost as much as a step of the grid
_DTYPES = (jnp.bfloat16, jnp.float32)
_ROWS_BYTES = 2**19  # of a tile's queries: the gradient's tiles of scores fit into VMEM beside them
_WIDEST = 256


def limits_of_dense_prefill(q, k, v):
    """See `ratjax_kernels.dispatch.Operation`."""
    if q.shape[-1] > _WIDEST:
        return f"serves head dims up to {_WIDEST}, not {q.shape[-1]}"
    for x in (q, k, v):
        if x.dtype not in _DTYPES:
            return f"serves bfloat16 and float32, not {x.dtype}"
    return None


def dense_prefill(q, k, v):
    """See `ratjax_kernels.dense_prefill.api`."""
    dtype = jnp.result_type(q, k, v)
    scaled = (q * q.shape[-1] ** -0.5).astype(dtype)
    return _attend(scaled, k.astype(dtype), v.astype(dtype)).astype(q.dtype)


@jax.custom_vjp
def _attend(q, k, v):
    return unchecked(lambda *x: _swap(_splash(*map(_swap, x))))(q, k, v)


def _forward(q, k, v):
    def run(*x):
        out, pull = jax.vjp(_splash, *map(_swap, x))
        return _swap(out), pull

    return unchecked(run)(q, k, v)


def _backward(pull, d_out):
    return unchecked(lambda pull, d: tuple(map(_swap, pull(_swap(d)))))(pull, d_out)


_attend.defvjp(_forward, _backward)


def _swap(x):
    """[B, T, heads, D] <-> [B, heads, T, D]."""
    return jnp.swapaxes(x, 1, 2)


def _splash(q, k, v):
    """Causal attention over [B, heads, T, D]; T is padded behind, where causality hides it."""
    length = q.shape[2]
    tile = _tile_of(length, max(q.shape[3], LANES) * q.dtype.itemsize)
    padded = -(-length // tile) * tile
    at_once = _TILES[tile]
    sizes = splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=at_once,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=at_once,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((padded, padded))] * q.shape[1])
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret())
    widths = [(0, 0), (0, 0), (0, padded - length), (0, 0)]
    return jax.vmap(kernel)(*(jnp.pad(x, widths) for x in (q, k, v)))[:, :, :length]


def _tile_of(length: int, row_bytes: int) -> int:
    """The tile with which `length` queries and keys cost least."""

    def cost(tile):
        across = -(-length // tile)
        return across * (across + 1) // 2 * (tile * tile + _STEP)

    return min((tile for tile in _TILES if tile * row_bytes <= _ROWS_BYTES), key=cost)
