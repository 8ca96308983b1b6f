"""Caches stacked over layers: decode operations read one layer of a stack where it lies."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


def at_layer(layer: Int32[Array, ""] | None, *arrays: Array) -> tuple[Array, ...]:
    """One layer of each stacked array; the arrays themselves where there is no stack."""
    return arrays if layer is None else tuple(a[layer] for a in arrays)


def as_stack(layer: Int32[Array, ""] | None, *arrays: Array) -> tuple[Array, ...]:
    """(layer, *stacked arrays): a single layer becomes layer 0 of a stack of one."""
    if layer is not None:
        return (layer, *arrays)
    return (jnp.int32(0), *(a[None] for a in arrays))


def merge_layers(stacked: int):
    """Gives `function(layer, *stacked arrays [L, B, ...], *others [B, ...])` a batching rule.

    The mapped axis joins the batch. Where the stack has several layers, which may differ from one
    element to the next, each element's layer is taken out first.

    Args:
      stacked: how many arrays are stacked.
    """

    def decorate(function):
        wrapped = jax.custom_batching.custom_vmap(function)

        @wrapped.def_vmap
        def rule(size, batched, *args):
            args = [
                a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
                for a, is_batched in zip(args, batched, strict=True)
            ]
            layer, stacks, others = args[0], args[1 : 1 + stacked], args[1 + stacked :]
            # [size, L, B, ...] -> [size, B, ...]
            taken = [
                a[:, 0] if a.shape[1] == 1 else jax.vmap(lambda a, i: a[i])(a, layer)
                for a in stacks
            ]
            merged = [a.reshape(size * a.shape[1], *a.shape[2:]) for a in (*taken, *others)]
            out = wrapped(jnp.int32(0), *(a[None] for a in merged[:stacked]), *merged[stacked:])
            split = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), out)
            return split, jax.tree.map(lambda _: True, out)

        return wrapped

    return decorate
