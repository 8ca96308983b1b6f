"""`jax.vmap` of what JAX cannot look into: kernels whose arrays all lead with a batch."""

import jax
import jax.numpy as jnp


def merge_vmap(function):
    """Gives `function` a batching rule: the mapped axis joins the batch, axis 0 of everything."""
    wrapped = jax.custom_batching.custom_vmap(function)

    @wrapped.def_vmap
    def rule(size, batched, *args):
        merged = []
        for arg, is_batched in zip(args, batched, strict=True):
            if not is_batched:
                arg = jnp.broadcast_to(arg, (size, *arg.shape))
            merged.append(arg.reshape(size * arg.shape[1], *arg.shape[2:]))
        out = wrapped(*merged)
        split = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), out)
        return split, jax.tree.map(lambda _: True, out)

    return wrapped
