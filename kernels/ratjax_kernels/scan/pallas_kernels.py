"""The recurrence on a TPU core: one position after the other, a whole register of heads at a time.

A position's keys are [heads, 128], which is how registers are shaped: eight heads by 128 channels.
So a step of the recurrence is a handful of full-width operations with several registers in flight,
nothing is moved between lanes, and [B, T, heads, 128] is read as it lies. The grid walks the tiles
of a sequence in order, the state waits in VMEM between them, and the next tile arrives meanwhile.

Backward takes the tiles from the end. It recomputes the states of its tile from the one that
entered it, which forward keeps, as one float32 state a tile.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

_UNROLL = 8


def _weights(gate):
    """s(x) and s(-x), exact at both infinities."""
    gate = gate.astype(jnp.float32)
    return jax.nn.sigmoid(gate), jax.nn.sigmoid(-gate)


def _f32(ref, t):
    return ref[t].astype(jnp.float32)


def _walk(length, body, carry):
    return lax.fori_loop(0, length, body, carry, unroll=min(_UNROLL, length))


def forward_kernel(
    gate_ref, k_ref, v_ref, k_0_ref, v_0_ref,
    k_mem_ref, v_mem_ref, k_in_ref, v_in_ref, k_last_ref, v_last_ref,
    k_state_ref, v_state_ref,
):  # fmt: skip
    """One tile: [ROWS, heads, 128], states [heads, 128]; the last two are scratch."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        k_state_ref[...] = k_0_ref[...]
        v_state_ref[...] = v_0_ref[...]

    k_in_ref[...] = k_state_ref[...]
    v_in_ref[...] = v_state_ref[...]

    def step(t, carry):
        k, v = carry
        keep, take = _weights(gate_ref[t])
        k = keep * k + take * _f32(k_ref, t)
        v = keep * v + take * _f32(v_ref, t)
        k_mem_ref[t] = k.astype(k_mem_ref.dtype)
        v_mem_ref[t] = v.astype(v_mem_ref.dtype)
        return k, v

    k, v = _walk(k_ref.shape[0], step, (k_state_ref[...], v_state_ref[...]))
    k_state_ref[...], v_state_ref[...] = k, v
    k_last_ref[...], v_last_ref[...] = k, v


def backward_kernel(
    gate_ref, k_ref, v_ref, k_in_ref, v_in_ref, dk_mem_ref, dv_mem_ref, dk_last_ref, dv_last_ref,
    d_gate_ref, dk_ref, dv_ref, dk_0_ref, dv_0_ref,
    k_change_ref, v_change_ref, ck_ref, cv_ref,
):  # fmt: skip
    """One tile, the last first. c is what a position hands to the one before it; see `xla`."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        ck_ref[...] = dk_last_ref[...]
        cv_ref[...] = dv_last_ref[...]

    length = k_ref.shape[0]

    def change(t, carry):
        """(h_{t-1} - x_t) g_t = h_t - x_t, which the gate's gradient needs."""
        k, v = carry
        keep, take = _weights(gate_ref[t])
        k_x, v_x = _f32(k_ref, t), _f32(v_ref, t)
        k = keep * k + take * k_x
        v = keep * v + take * v_x
        k_change_ref[t] = k - k_x
        v_change_ref[t] = v - v_x
        return k, v

    _walk(length, change, (k_in_ref[...], v_in_ref[...]))

    def step(i, carry):
        ck, cv = carry
        t = length - 1 - i
        keep, take = _weights(gate_ref[t])
        s_k, s_v = _f32(dk_mem_ref, t) + ck, _f32(dv_mem_ref, t) + cv
        d_gate = (s_k * k_change_ref[t] + s_v * v_change_ref[t]) * take
        d_gate_ref[t] = d_gate.astype(d_gate_ref.dtype)
        dk_ref[t] = (take * s_k).astype(dk_ref.dtype)
        dv_ref[t] = (take * s_v).astype(dv_ref.dtype)
        return keep * s_k, keep * s_v

    ck, cv = _walk(length, step, (ck_ref[...], cv_ref[...]))
    ck_ref[...], cv_ref[...] = ck, cv
    dk_0_ref[...], dv_0_ref[...] = ck, cv
