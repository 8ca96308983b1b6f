"""Random caches of benchmark size, and the dense decode step that everything is compared with."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=1)
def random(key, shape):
    """Normal bfloat16, made one sequence at a time: float32 temporaries would not fit."""
    keys = jax.random.split(key, shape[0])
    return jax.lax.map(lambda key: jax.random.normal(key, shape[1:], jnp.bfloat16), keys)


def queries_and_cache(batch, slots, heads, kv_heads, channels):
    """(q, k, v, lengths) of full caches."""
    keys = jax.random.split(jax.random.key(0), 3)
    cache = (batch, slots, kv_heads, channels)
    lengths = jnp.full((batch,), slots, jnp.int32)
    q = random(keys[0], (batch, 1, heads, channels))
    return q, random(keys[1], cache), random(keys[2], cache), lengths
