"""Attention over a mesh: each device attends for its own sequences and heads.

Kernels are custom calls, which the compiler cannot cut up, so they run under `jax.shard_map`.
Where sequences are cut over devices too, heads and time are exchanged around the call: before it
every device gets whole sequences of fewer heads, after it its own positions of all of them
(DeepSpeed-Ulysses, arXiv 2309.14509). Against rotating or gathering keys past cut-up queries this
moves less, runs every pattern's kernel as it is, and shares causal work out evenly; what it asks
for is as many query heads as devices. Keys and values with fewer heads than that are gathered
whole, and each device takes those that its query heads read.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float32

from ratjax.shapes import Keys, Queries, Values
from ratjax.sharding.mesh import active_mesh
from ratjax.sharding.place import Axes, manual

_QUERIES = ("batch", "time", "heads", "head_dim")
_KEYS = ("batch", "time", "kv_heads", "head_dim")


def attend_by_heads(
    attend: Callable[[Queries, Keys, Values], Queries], q: Queries, k: Keys, v: Values
) -> Queries:
    """`attend(q, k, v)` wherever its arrays lie.

    Args:
      attend: attention over whole sequences that treats sequences, and key/value heads with
        their query heads, each on their own.
      q: queries, [B, T, H, D].
      k: keys, [B, T, G, D].
      v: values.
    """
    mesh = active_mesh()
    if mesh is None:
        return attend(q, k, v)
    devices = mesh.shape["context"]

    def local(q, k, v):
        if devices == 1:
            return attend(q, k, v)
        group = q.shape[2] // k.shape[2]
        out = attend(_whole(q), _read_by(k, group, devices), _read_by(v, group, devices))
        return jax.lax.all_to_all(out, "context", 1, 2, tiled=True)

    # Every array is cut along every axis of the mesh: there is nothing for JAX to follow.
    return manual(local, (_QUERIES, _KEYS, _KEYS), _QUERIES, check_vma=False)(q, k, v)


def serve_by_heads(function: Callable, stacks: Any, *others: Any) -> tuple[Any, Any]:
    """`function(stacks, *others)` of caches and prompts, wherever their arrays lie.

    Each device serves its own prompts with its own heads, whole prompts and whole caches.

    Args:
      function: treats prompts, and key/value heads with their query heads, each on their own;
        returns (stacks, others).
      stacks: arrays [layers, B, ...]: caches of a run of layers.
      *others: arrays [B, ...] and scalars. In both, axes are, after the layers,
        [B, positions, heads, head_dim], [B, heads, positions] or [B, positions].

    Returns:
      What `function` does, with the same axes.
    """
    if active_mesh() is None:
        return function(stacks, *others)
    given = jax.tree.structure((stacks, others))
    made = None

    def local(*leaves):
        nonlocal made
        stacks, others = jax.tree.unflatten(given, leaves)
        out = function(stacks, *others)
        made = jax.tree.structure(out)
        return tuple(map(jax.tree.leaves, out))

    leaves = jax.tree.leaves((stacks, others))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # shapes alone, of whole arrays
        shapes = jax.eval_shape(local, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))
    serve = manual(
        lambda *leaves: tuple(x for part in local(*leaves) for x in part),
        tuple(_axes_of(stacks, others)),
        _axes_of(*shapes),
        check_vma=False,  # what is equal along an axis of the mesh was made of what is equal there
    )
    return jax.tree.unflatten(made, serve(*leaves))


def mean_over_heads(average: Float32[Array, "*any"]) -> Float32[Array, "*any"]:
    """An average over this device's query heads, averaged over those of all devices."""
    shared = "tensor" in jax.sharding.get_abstract_mesh().axis_names
    return jax.lax.pmean(average, "tensor") if shared else average


def _axes_of(stacks: Any, others: Any) -> list[Axes]:
    """The logical axes of every leaf, in order."""
    stacked = [("layers", *_axes(x.ndim - 1)) for x in jax.tree.leaves(stacks)]
    return stacked + [_axes(x.ndim) for x in jax.tree.leaves(others)]


def _axes(dimensions: int) -> Axes:
    return {
        0: (),
        1: ("batch",),
        2: ("batch", None),
        3: ("batch", "heads", None),
        4: ("batch", None, "heads", "head_dim"),
    }[dimensions]


def _whole(x):
    """[B, T / devices, heads, D] -> [B, T, heads / devices, D]."""
    return jax.lax.all_to_all(x, "context", 2, 1, tiled=True)


def _read_by(x, group, devices):
    """Whole sequences of the key/value heads that this device's query heads read."""
    heads = x.shape[2]
    if heads % devices == 0:
        return _whole(x)
    queries = heads * group // devices
    mine = jax.lax.axis_index("context") * queries + jnp.arange(queries)
    x = jax.lax.all_gather(x, "context", axis=1, tiled=True)
    return jnp.take(x, mine // group, axis=2)
