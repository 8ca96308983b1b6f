"""Scatters of one row a sequence, which XLA does in place where it may."""

import jax.numpy as jnp


def append(k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.cache_append.api`."""
    rows = jnp.arange(lengths.shape[0])

    def at(x, places):
        return x.at[rows, places] if layer is None else x.at[layer, rows, places]

    k_out = at(k, lengths).set(k_new[:, 0].astype(k.dtype), mode="drop")
    v_out = at(v, lengths).set(v_new[:, 0].astype(v.dtype), mode="drop")
    if bounds is None:
        return k_out, v_out
    k_min, k_max = bounds
    # A dropped token must not widen the last page, which may be partial.
    pages = jnp.where(lengths < k.shape[-3], lengths // page_size, k_min.shape[-3])
    k_min = at(k_min, pages).min(k_new[:, 0].astype(k_min.dtype), mode="drop")
    k_max = at(k_max, pages).max(k_new[:, 0].astype(k_max.dtype), mode="drop")
    return k_out, v_out, k_min, k_max
