"""What model code says of its arrays. Without a mesh all of it changes nothing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int32

from ratjax.sharding.mesh import active_mesh
from ratjax.sharding.table import RULES, spec

Axes = tuple[str | None, ...]


def out_sharding(*logical: str | None) -> PartitionSpec | None:
    """For JAX's `out_sharding=` arguments, where a result's axes cannot be inferred."""
    return None if active_mesh() is None else spec(*logical)


def constrain(array: Array, *logical: str | None) -> Array:
    """The array, moved to where its logical axes belong."""
    return array if active_mesh() is None else jax.sharding.reshard(array, spec(*logical))


def gather(parameter: Array) -> Array:
    """A parameter with its `embed` axis whole, for use; its gradient is scattered again.

    To be called where the parameter is used, inside the loop over layers: only one layer's
    parameters are whole at a time. What is gathered is what is given: cast it first.
    """
    if active_mesh() is None:
        return parameter
    cut = RULES["embed"]
    parts = jax.typeof(parameter).sharding.spec
    whole = PartitionSpec(*(None if part in cut else part for part in parts))
    return jax.sharding.reshard(parameter, whole)


def keep_no_gathers(primitive, *_, **__) -> bool:
    """A policy of `jax.checkpoint`: everything is kept but what `gather` gave, and casts.

    Kept, the gathered parameters of all layers would lie in memory at once; kept casts are copies.
    """
    return primitive.name not in ("reshard", "convert_element_type")


def manual(
    function: Callable,
    in_axes: tuple[Axes, ...],
    out_axes: Axes | list[Axes],
    check_vma: bool = True,
) -> Callable:
    """`jax.shard_map` by logical axes: `function` sees each device's part.

    Arrays that lie elsewhere are moved first.

    Args:
      function: of arrays.
      in_axes: logical axes of each of them.
      out_axes: logical axes of the result; a list where there are several results.
      check_vma: whether JAX is to follow what differs between devices. It cannot look into
        kernels, and need not where every array is cut along every axis of the mesh.
    """
    several = isinstance(out_axes, list)
    in_specs = tuple(spec(*axes) for axes in in_axes)
    mapped = jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=tuple(spec(*axes) for axes in out_axes) if several else spec(*out_axes),
        check_vma=check_vma,
    )
    return lambda *arrays: mapped(*map(jax.sharding.reshard, arrays, in_specs))


def split_batch(array: Array, parts: int) -> Array:
    """[B, T] -> [parts, B / parts, T], each device cutting up its own sequences."""

    def split(array):
        return array.reshape(parts, -1, array.shape[1])

    if active_mesh() is None:
        return split(array)
    return manual(split, (("batch", "time"),), (None, "batch", "time"))(array)


def pick(array: Array, positions: Int32[Array, " B"]) -> Array:
    """[B, T, ...] at each sequence's own position: [B, 1, ...]."""

    def take(array, positions):
        index = jnp.expand_dims(positions, range(1, array.ndim))
        return jnp.take_along_axis(array, index, axis=1)

    if active_mesh() is None:
        return take(array, positions)
    axes = ("batch", *(None,) * (array.ndim - 1))
    return manual(take, (axes, ("batch",)), axes)(array, positions)
