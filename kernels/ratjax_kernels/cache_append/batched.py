"""What kernels that append in place have in common: stacks of layers, and `jax.vmap`."""

import jax

from ratjax_kernels.cache_append import xla
from ratjax_kernels.layers import as_stack


def append(launch, k, v, lengths, k_new, v_new, bounds, page_size, layer):
    """See `ratjax_kernels.cache_append.api`.

    Args:
      launch: (layer, lengths, k_new, v_new, stacks, page_size) -> the stacks, each [L, B, ...].
    """
    arrays = (k, v, *(bounds or ()))

    @jax.custom_batching.custom_vmap
    def run(layer, lengths, k_new, v_new, *stacks):
        return launch(layer, lengths, k_new, v_new, stacks, page_size)

    @run.def_vmap
    def rule(size, batched, *args):
        # Batched layers cannot be told apart by one number: scatters can address them.
        def one(layer, lengths, k_new, v_new, k, v, *bounds):
            return xla.append(k, v, lengths, k_new, v_new, bounds or None, page_size, layer)

        axes = [0 if is_batched else None for is_batched in batched]
        return jax.vmap(one, axes)(*args), (True,) * len(arrays)

    stack, *stacks = as_stack(layer, *arrays)
    out = run(stack, lengths, k_new.astype(k.dtype), v_new.astype(v.dtype), *stacks)
    return tuple(out if layer is not None else (x[0] for x in out))
