"""Kernels under `jax.shard_map`: along which mesh axes arrays differ between devices.

JAX follows this for its own operations (`check_vma`) but cannot look into a custom call.
"""

import jax


def vary_together(tree, like=()):
    """The arrays of `tree`, all marked as varying along every axis that any of them varies along.

    Outside `shard_map` nothing changes. The gradient of an array that was the same everywhere is
    summed over the devices.

    Args:
      tree: arrays, and anything else, which is passed through.
      like: further arrays whose axes count.
    """
    leaves = [x for x in jax.tree.leaves((tree, like)) if isinstance(x, jax.Array)]
    axes = frozenset().union(*map(_varying, leaves))
    if not axes:
        return tree

    def cast(x):
        if not isinstance(x, jax.Array):
            return x
        missing = tuple(sorted(axes - _varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def _varying(array) -> frozenset[str]:
    return getattr(getattr(jax.typeof(array), "manual_axis_type", None), "varying", frozenset())
