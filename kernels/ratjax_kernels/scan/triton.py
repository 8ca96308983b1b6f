"""`decay_scan` through the Triton kernels of `ratjax_kernels.scan.triton_kernels`."""

import jax
import jax.numpy as jnp

from ratjax_kernels.scan import triton_kernels
from ratjax_kernels.triton_call import device_problem, launch, merge_vmap


def tile_of(batch: int, channels: int) -> dict[str, int]:
    """The constants of the kernels that depend on the shape.

    A tile passes the state on about 1.1 us after it got its own. With few channels in all that is
    longer than memory needs for a row of tiles, so the state is handed on WINDOW tiles at a time.
    Each of the two waits loads at least one word a thread: GROUPS * COLS and WINDOW * COLS are
    both at least 32 * num_warps (a WINDOW of 1 has no second wait).
    """
    window = 8 if batch * channels < 8192 else 1
    return {"GROUPS": 4, "RUN": 8, "COLS": 64, "WINDOW": window, "num_warps": 4}


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
    tile = tile_of(batch, channels)
    row_tiles = -(-length // (tile["GROUPS"] * tile["RUN"]))
    column_tiles = -(-channels // tile["COLS"])
    lanes = batch * column_tiles
    constants = {
        "LENGTH": length,
        "CHANNELS": channels,
        "LANES": lanes,
        **tile,
        "num_stages": 1,
    }
    plane = column_tiles * tile["COLS"]
    words = jax.ShapeDtypeStruct((batch, row_tiles, 2, plane), jnp.int32)
    totals = (batch, row_tiles, 3, plane) if tile["WINDOW"] > 1 else (batch, 1)
    return lanes * row_tiles, constants, words, jax.ShapeDtypeStruct(totals, jnp.int32)


@merge_vmap
def _launch_forward(gate_logits, k, v, k_0, v_0):
    programs, constants, words, totals = _tiling(k)
    outputs = (_like(k), _like(v), _like(k_0), _like(v_0), words, totals)
    result = launch(
        triton_kernels.forward_kernel,
        (gate_logits, k, v, k_0, v_0),
        outputs,
        grid=(programs,),
        zeroed=(4, 5),
        **constants,
    )
    return result[:5]


@merge_vmap
def _launch_backward(gate_logits, k, v, k_0, v_0, states, dk_mem, dv_mem, dk_last, dv_last):
    programs, constants, words, totals = _tiling(k)
    inputs = (gate_logits, k, v, k_0, v_0, states, dk_mem, dv_mem, dk_last, dv_last)
    outputs = (_like(gate_logits), _like(k), _like(v), _like(k_0), _like(v_0), words, totals)
    result = launch(
        triton_kernels.backward_kernel,
        inputs,
        outputs,
        grid=(programs,),
        zeroed=(5, 6),
        **constants,
    )
    return result[:5]


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
