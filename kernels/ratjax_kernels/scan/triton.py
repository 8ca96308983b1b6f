"""`decay_scan` through the Triton kernels of `ratjax_kernels.scan.triton_kernels`."""

import jax
import jax.numpy as jnp

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.scan import triton_chain, triton_kernels
from ratjax_kernels.triton_call import device_problem, launch

# Tiles that the rings of words between them have room for; more than run at once.
_RING = 256
# Below it (batch entries times channels) the chain of tiles takes longer than memory.
_FEW_CHANNELS = 8192


def tiles_of(batch: int, channels: int) -> tuple[dict[str, int], dict[str, int]]:
    """The constants of the forward and the backward kernel that depend on the shape.

    The fastest of those measured on an H100. COLS is a multiple of the threads, backward's ROWS
    divides forward's. A tile passes the state on about 0.8 us after it got its own: with few
    channels in all that is longer than memory needs for a row of tiles, so that tiles are made
    taller and the state passes a window of them at once.
    """
    if batch * channels < _FEW_CHANNELS:
        tile = {"COLS": 64, "WINDOW": 4, "num_warps": 2}
        return {"ROWS": 64, **tile}, {"ROWS": 32, **tile, "AHEAD": 4}
    tile = {"COLS": 64, "WINDOW": 1}
    return (
        {"ROWS": 32, **tile, "num_warps": 1},
        {"ROWS": 16, **tile, "num_warps": 2, "AHEAD": 4},
    )


def limits_of_decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.dispatch.Operation`."""
    return device_problem(gate_logits, k, v)


@jax.custom_vjp
def decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.scan.api`; the states come in and go out in float32."""
    return _launch_forward(gate_logits, k, v, k_0, v_0)[:4]


def _forward(gate_logits, k, v, k_0, v_0):
    *outputs, states = _launch_saving_forward(gate_logits, k, v, k_0, v_0)
    return tuple(outputs), (gate_logits, k, v, k_0, v_0, states)


def _backward(residuals, cotangents):
    return _launch_backward(*residuals, *cotangents)


decay_scan.defvjp(_forward, _backward)


def _tiling(k, tile):
    """(programs, constants, room for what tiles leave for each other) of one launch."""
    batch, length = k.shape[:2]
    channels = k.shape[2] * k.shape[3]
    row_tiles = -(-length // tile["ROWS"])
    lanes = batch * -(-channels // tile["COLS"])
    ring = 0 if tile["WINDOW"] == 1 else _RING
    constants = {
        "LENGTH": length,
        "CHANNELS": channels,
        "LANES": lanes,
        "RING": ring,
        **tile,
        "num_stages": 1,
    }
    places = triton_chain.places(lanes, tile["COLS"], tile["WINDOW"], ring)
    return lanes * row_tiles, constants, jax.ShapeDtypeStruct((places,), jnp.int32)


def _run_forward(gate_logits, k, v, k_0, v_0, save: bool):
    batch, length, heads, width = k.shape
    forward, backward = tiles_of(batch, heads * width)
    programs, constants, shared = _tiling(k, forward)
    every, saves, channels = 0, 1, 1
    if save:
        every, channels = backward["ROWS"], heads * width
        saves = -(-length // forward["ROWS"]) * forward["ROWS"] // every
    states = jax.ShapeDtypeStruct((batch, saves, 2, channels), jnp.float32)
    outputs = (_like(k), _like(v), _like(k_0), _like(v_0), states, shared)
    return launch(
        triton_kernels.forward_kernel,
        (gate_logits, k, v, k_0, v_0),
        outputs,
        grid=(programs,),
        zeroed=(5,),
        SAVE=every,
        SAVES=saves,
        **constants,
    )[:5]


@merge_vmap
def _launch_forward(gate_logits, k, v, k_0, v_0):
    return _run_forward(gate_logits, k, v, k_0, v_0, False)


@merge_vmap
def _launch_saving_forward(gate_logits, k, v, k_0, v_0):
    return _run_forward(gate_logits, k, v, k_0, v_0, True)


@merge_vmap
def _launch_backward(gate_logits, k, v, k_0, v_0, states, dk_mem, dv_mem, dk_last, dv_last):
    batch, _, heads, channels = k.shape
    programs, constants, shared = _tiling(k, tiles_of(batch, heads * channels)[1])
    inputs = (gate_logits, k, v, k_0, v_0, states, dk_mem, dv_mem, dk_last, dv_last)
    outputs = (_like(gate_logits), _like(k), _like(v), _like(k_0), _like(v_0), shared)
    return launch(
        triton_kernels.backward_kernel,
        inputs,
        outputs,
        grid=(programs,),
        zeroed=(5,),
        SAVES=states.shape[1],
        **constants,
    )[:5]


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
