"""Large arrays that outlive one program: their shapes ahead, zeros in place of them, their end."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ratjax.sharding import active_mesh, constrain


def shapes_of(function: Callable, *args: Any) -> tuple[list[jax.ShapeDtypeStruct], Any]:
    """The leaves of `function(*args)`, as shapes, and their tree.

    Apart, because the classes of caches and states hold arrays, not their shapes.
    """
    structure = None

    def leaves(*args):
        nonlocal structure
        found, structure = jax.tree.flatten(function(*args))
        return found

    return jax.eval_shape(leaves, *args), structure


def reuse(held: Any, leaves: list[jax.ShapeDtypeStruct], structure: Any) -> Any:
    """`held`, or where that has other shapes, zeros in its stead: then it is freed first."""
    fits = jax.tree.structure(held) == structure and all(
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(jax.tree.leaves(held), leaves, strict=True)
    )
    if fits:
        return held
    discard(held)
    made = [_zeros(a.shape, a.dtype, a.sharding and a.sharding.spec) for a in leaves]
    return jax.tree.unflatten(structure, made)


def discard(tree: Any) -> None:
    """Frees arrays' memory now, whoever still refers to them."""
    for array in jax.tree.leaves(tree):
        array.delete()


def whole(array: Array) -> Array:
    """All of an array on every device, and so in every process."""
    return constrain(array, *(None,) * array.ndim)


@partial(jax.jit, static_argnames=("shape", "dtype", "spec"))
def _zeros(shape: tuple[int, ...], dtype: Any, spec: PartitionSpec | None) -> Array:
    zeros = jnp.zeros(shape, dtype)
    return zeros if active_mesh() is None else jax.sharding.reshard(zeros, spec)
