"""`decay_scan` through the Triton kernels of `ratjax_kernels.scan.triton_kernels`."""

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.scan import triton_kernels
from ratjax_kernels.scan.triton_kernels import TILE, WARPS
from ratjax_kernels.triton_call import device_problem, launch


def groups_of_tile(batch: int, channels: int) -> int:
    """Runs in a tile.

    A tile passes the state on about 1.1 us after it got its own. With few channels in all that is
    longer than memory needs for a row of small tiles, so tiles are made taller.
    """
    return 8 if batch * channels >= 16384 else 16 if batch * channels >= 8192 else 32


def limits_of_decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(gate_logits, k, v)


@jax.custom_vjp
def decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.scan.api`; the states come in and go out in float32."""
    return _forward(gate_logits, k, v, k_0, v_0)[0]


def _forward(gate_logits, k, v, k_0, v_0):
    *outputs, words = _launch_forward(gate_logits, k, v, k_0, v_0)
    return tuple(outputs), (gate_logits, k, v, k_0, v_0, words)


def _backward(residuals, cotangents):
    return _launch_backward(*residuals, *cotangents)


decay_scan.defvjp(_forward, _backward)


def _tiling(k):
    batch, length = k.shape[:2]
    channels = k.shape[2] * k.shape[3]
    groups = groups_of_tile(batch, channels)
    row_tiles = -(-length // (groups * TILE["RUN"]))
    column_tiles = -(-channels // TILE["COLS"])
    lanes = batch * column_tiles
    constants = {
        "LENGTH": length,
        "CHANNELS": channels,
        "LANES": lanes,
        "GROUPS": groups,
        **TILE,
        "num_warps": WARPS,
        "num_stages": 1,
    }
    # 64-bit words as pairs of int32, which JAX has without its 64-bit mode.
    words = jax.ShapeDtypeStruct((batch, row_tiles, 2, column_tiles * TILE["COLS"], 2), jnp.int32)
    return lanes * row_tiles, constants, words


@merge_vmap
def _launch_forward(gate_logits, k, v, k_0, v_0):
    programs, constants, words = _tiling(k)
    outputs = (_like(k), _like(v), _like(k_0), _like(v_0), words)
    result = launch(
        triton_kernels.forward_kernel,
        (gate_logits, k, v, k_0, v_0),
        outputs,
        grid=(programs,),
        zeroed=(4,),
        **constants,
    )
    return result


@merge_vmap
def _launch_backward(gate_logits, k, v, k_0, v_0, states, dk_mem, dv_mem, dk_last, dv_last):
    programs, constants, words = _tiling(k)
    inputs = (gate_logits, k, v, k_0, v_0, states, dk_mem, dv_mem, dk_last, dv_last)
    outputs = (_like(gate_logits), _like(k), _like(v), _like(k_0), _like(v_0), words)
    result = launch(
        triton_kernels.backward_kernel,
        inputs,
        outputs,
        grid=(programs,),
        zeroed=(5,),
        **constants,
    )
    return result[:5]


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
