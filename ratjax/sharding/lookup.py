"""Embedding look-ups in a table whose rows and columns both lie on several devices.

The table is the largest parameter by far. Instead of gathering it, each device looks the tokens of
its whole `fsdp` group up in its own columns, and the results change places: what travels, and the
gradient's share of the table, stay a fraction of the table.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ratjax.shapes import Tokens
from ratjax.sharding.mesh import active_mesh
from ratjax.sharding.place import manual


def look_up(table: Float[Array, "V M"], tokens: Tokens, dtype: str) -> Float[Array, "B T M"]:
    """Rows of `table`; on a mesh in `dtype`, as they travel."""
    if active_mesh() is None:
        return table[tokens]

    def local(table, tokens):
        tokens = jax.lax.all_gather(tokens, "fsdp", tiled=True)
        row = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        here = (row >= 0) & (row < table.shape[0])
        found = table[jnp.where(here, row, 0)].astype(dtype)
        found = jax.lax.psum(jnp.where(here[..., None], found, 0), "tensor")
        return jax.lax.all_to_all(found, "fsdp", 0, 2, tiled=True)

    axes = (("vocab", "embed"), ("batch", "time"))
    return manual(local, axes, ("batch", "time", "channels"))(table, tokens)
