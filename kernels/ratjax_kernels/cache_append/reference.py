"""Every slot and every page looked at, and replaced where it is the token's."""

import jax.numpy as jnp


def append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.cache_append.api`."""

    def placed(x, at):
        here = (jnp.arange(x.shape[-3]) == at[:, None]) & (lengths < k.shape[-3])[:, None]
        here = here[..., None, None]
        return here if layer is None else here & _is_layer(x, layer)

    k_out = jnp.where(placed(k, lengths), k_new.astype(k.dtype), k)
    v_out = jnp.where(placed(v, lengths), v_new.astype(v.dtype), v)
    if bounds is None:
        return k_out, v_out
    k_min, k_max = bounds
    here = placed(k_min, lengths // page_size)
    k_min = jnp.where(here, jnp.minimum(k_min, k_new.astype(k_min.dtype)), k_min)
    k_max = jnp.where(here, jnp.maximum(k_max, k_new.astype(k_max.dtype)), k_max)
    return k_out, v_out, k_min, k_max


def _is_layer(x, layer):
    return (jnp.arange(x.shape[0]) == layer)[:, None, None, None, None]
