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
    axes = frozenset().union(*map(_varying, _arrays((tree, like))))
    if not axes:
        return tree

    def cast(x):
        if not isinstance(x, jax.Array):
            return x
        missing = tuple(sorted(axes - _varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def unchecked(function):
    """`function` for kernels that do not say along which axes their results vary.

    Outside `shard_map`, and where it does not check, it is `function` itself. Elsewhere results are
    marked as varying along every axis that an argument varies along. What is differentiated inside
    must end in an operation of JAX's, and take its cotangent through one: types bear no axes there.
    """

    def run(*args):
        if not any(map(_varying, _arrays(args))):
            return function(*args)
        nowhere = jax.sharding.PartitionSpec()
        inner = jax.shard_map(
            function, in_specs=nowhere, out_specs=nowhere, axis_names=frozenset(), check_vma=False
        )
        return vary_together(inner(*args), like=args)

    return run


def _arrays(tree) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]


def _varying(array) -> frozenset[str]:
    return getattr(getattr(jax.typeof(array), "manual_axis_type", None), "varying", frozenset())
