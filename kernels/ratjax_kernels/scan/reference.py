"""The recurrence as it is written, one position after the other; JAX differentiates it."""

import jax
import jax.numpy as jnp
from jax import lax


def decay_scan(gate_logits, k, v, k_0, v_0):
    """See `ratjax_kernels.scan.api`; the states come in and go out in float32."""

    def step(state, inputs):
        gate, k_t, v_t = (x.astype(jnp.float32) for x in inputs)
        keep, take = jax.nn.sigmoid(gate), jax.nn.sigmoid(-gate)
        state = (keep * state[0] + take * k_t, keep * state[1] + take * v_t)
        return state, state

    time_first = tuple(jnp.moveaxis(x, 1, 0) for x in (gate_logits, k, v))
    (k_last, v_last), (k_mem, v_mem) = lax.scan(step, (k_0, v_0), time_first)
    k_mem = jnp.moveaxis(k_mem, 0, 1).astype(k.dtype)
    v_mem = jnp.moveaxis(v_mem, 0, 1).astype(v.dtype)
    return k_mem, v_mem, k_last, v_last
