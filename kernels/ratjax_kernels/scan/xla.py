"""The recurrence in plain JAX: a loop inside chunks, an associative scan across them.

The sequence is cut into chunks of `chunk_length()` positions. All chunks walk through their
positions at the same time, first only to find the affine map each applies to the state that enters
it; a `jax.lax.associative_scan` composes those maps, which gives every chunk its entering state; a
second walk writes the outputs. Each element is read twice and no array with a cumulative gate is
ever written, where an associative scan over all positions makes about 2 log2(T) passes.

Backward is the same machine run from the end. With y the outputs and s_t the gradient of h_t:

    c_t = g_t (dy_t + c_{t+1}),   s_t = dy_t + c_{t+1},
    dx_t = (1 - g_t) s_t,         dgate_t = s_t (h_{t-1} - x_t) g_t (1 - g_t)

where the gate's sum runs over keys and values. No quotient of gates is formed anywhere, so gates of
exactly zero or one are ordinary numbers.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ratjax_kernels.dispatch import platform


def chunk_length() -> int:
    """Positions of a chunk: long where a step is cheap, short where each costs a launch."""
    return 256 if platform() == "cpu" else 64


@jax.custom_vjp
def decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.scan.api`; the states come in and go out in float32."""
    k_mem, v_mem, last = _states(gate_logits, k, v, (k_0, v_0))
    return k_mem.astype(k.dtype), v_mem.astype(v.dtype), *last


def _forward(gate_logits, k, v, k_0, v_0):
    k_mem, v_mem, last = _states(gate_logits, k, v, (k_0, v_0))
    # float32 outputs are the states themselves and cost nothing to keep; narrower outputs have lost
    # bits of them, so backward computes the states again instead of holding a wider copy.
    exact = k.dtype == v.dtype == jnp.float32
    residuals = (gate_logits, k, v, k_0, v_0, (k_mem, v_mem) if exact else None)
    return (k_mem.astype(k.dtype), v_mem.astype(v.dtype), *last), residuals


def _backward(residuals, cotangents):
    gate_logits, k, v, k_0, v_0, states = residuals
    dk_mem, dv_mem, dk_last, dv_last = cotangents
    if states is None:
        states = _states(gate_logits, k, v, (k_0, v_0))[:2]
    before = tuple(
        jnp.concatenate([first[:, None], state[:, :-1]], axis=1)
        for first, state in zip((k_0, v_0), states, strict=True)
    )
    chunked = _Chunks(k.shape[1])
    inputs = (
        chunked.split(gate_logits, jnp.inf),
        chunked.split(dk_mem),
        chunked.split(dv_mem),
    )
    entering = _entering_states(_backward_map, inputs, (dk_last, dv_last), reverse=True)

    def step(carry, inputs):
        gate, dk_t, dv_t = (x.astype(jnp.float32) for x in inputs)
        keep = jax.nn.sigmoid(gate)
        s_k, s_v = dk_t + carry[0], dv_t + carry[1]
        return (keep * s_k, keep * s_v), (s_k, s_v)

    leaving, gradients = lax.scan(step, entering, inputs, reverse=True)
    s_k, s_v = (chunked.join(x) for x in gradients)
    keep, take = _weights(gate_logits.astype(jnp.float32))
    d_gate = (s_k * (before[0] - k) + s_v * (before[1] - v)) * (keep * take)
    return (
        d_gate.astype(gate_logits.dtype),
        (take * s_k).astype(k.dtype),
        (take * s_v).astype(v.dtype),
        leaving[0][:, 0],
        leaving[1][:, 0],
    )


decay_scan.defvjp(_forward, _backward)


def _states(gate_logits, k, v, initial):
    """The float32 states after every position [B, T, G, D], twice, and after the last."""
    chunked = _Chunks(k.shape[1])
    inputs = (chunked.split(gate_logits, jnp.inf), chunked.split(k), chunked.split(v))
    entering = _entering_states(_forward_map, inputs, initial)

    def step(state, inputs):
        keep, k_in, v_in = _forward_map(inputs)
        state = (keep * state[0] + k_in, keep * state[1] + v_in)
        return state, state

    leaving, states = lax.scan(step, entering, inputs)
    # Padding carries the state along, so the last chunk's last state is the sequence's.
    return *(chunked.join(x) for x in states), tuple(x[:, -1] for x in leaving)


def _entering_states(position_map, inputs, initial, reverse=False):
    """The state that enters each chunk: [B, chunks, G, D] for keys and for values.

    Args:
      position_map: turns one position's inputs into its map (a, b_k, b_v), state -> a state + b.
      inputs: arrays [chunk, B, chunks, G, D].
      initial: the pair of states [B, G, D] before the first chunk (the last, with `reverse`).
      reverse: walk from the last position to the first.
    """
    if inputs[0].shape[2] == 1:
        return tuple(state[:, None] for state in initial)
    first = -1 if reverse else 0
    rest = slice(None, -1) if reverse else slice(1, None)

    def step(total, one):
        return _compose(total, position_map(one)), None

    # The walk starts at a position rather than at the identity map: a constant start would lack
    # the sharding type of the data under shard_map.
    start = position_map(tuple(x[first] for x in inputs))
    total, _ = lax.scan(step, start, tuple(x[rest] for x in inputs), reverse=reverse)
    gate, *offsets = lax.associative_scan(_compose, total, axis=1, reverse=reverse)
    entering = []
    for offset, state in zip(offsets, initial, strict=True):
        leaving = gate * state[:, None] + offset
        if reverse:
            entering.append(jnp.concatenate([leaving[:, 1:], state[:, None]], axis=1))
        else:
            entering.append(jnp.concatenate([state[:, None], leaving[:, :-1]], axis=1))
    return tuple(entering)


def _compose(earlier, later):
    """The affine map that applies `earlier` and then `later`."""
    a_1, *b_1 = earlier
    a_2, *b_2 = later
    return (a_2 * a_1, *(a_2 * x + y for x, y in zip(b_1, b_2, strict=True)))


def _weights(gate):
    # 1 - s(x) = s(-x): subtracting would lose the small weights of gates near one.
    return jax.nn.sigmoid(gate), jax.nn.sigmoid(-gate)


def _forward_map(inputs):
    gate, k, v = (x.astype(jnp.float32) for x in inputs)
    keep, take = _weights(gate)
    return keep, take * k, take * v


def _backward_map(inputs):
    gate, dk, dv = (x.astype(jnp.float32) for x in inputs)
    keep = jax.nn.sigmoid(gate)
    return keep, keep * dk, keep * dv


class _Chunks:
    """Cuts [B, T, G, D] into [chunk, B, chunks, G, D] and joins it again."""

    def __init__(self, length: int):
        self.length = length
        self.chunk = min(chunk_length(), length)
        self.chunks = -(-length // self.chunk)

    def split(self, x, fill=0):
        missing = self.chunk * self.chunks - self.length
        if missing:
            widths = [(0, 0), (0, missing), (0, 0), (0, 0)]
            x = jnp.pad(x, widths, constant_values=fill)
        batch, _, *rest = x.shape
        return jnp.moveaxis(x.reshape(batch, self.chunks, self.chunk, *rest), 2, 0)

    def join(self, x):
        _, batch, _, *rest = x.shape
        x = jnp.moveaxis(x, 0, 2).reshape(batch, self.chunks * self.chunk, *rest)
        return x[:, : self.length]
