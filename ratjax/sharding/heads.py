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

import jax
import jax.numpy as jnp

from ratjax.shapes import Keys, Queries, Values
from ratjax.sharding.mesh import active_mesh
from ratjax.sharding.place import manual

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
