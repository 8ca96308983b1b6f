"""The one table from logical axes to the axes of the mesh."""

from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: dict[str, tuple[str, ...]] = {
    # Arrays of a step: tokens, activations, caches.
    "batch": ("data", "fsdp"),
    "time": ("context",),
    "channels": (),  # of the residual stream: whole on every device
    "slots": (),  # positions of a cache: decoding reads all of them
    # Parameters, and what they make.
    "layers": (),
    "embed": ("fsdp",),  # a parameter's side of the residual stream, gathered where it is used
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "norm": (),  # a vector of the residual stream's width: too small to be worth gathering
}


def spec(*logical: str | None) -> PartitionSpec:
    """How an array with these logical axes is cut; None is an axis that nobody cuts.

    Raises:
      ValueError: an unknown name, or two axes of one array that fall on one axis of the mesh.
    """
    parts, taken = [], {}
    for name in logical:
        if name is not None and name not in RULES:
            raise ValueError(f"{name!r} is no logical axis; known: {', '.join(RULES)}")
        axes = RULES[name] if name is not None else ()
        for axis in axes:
            if axis in taken:
                raise ValueError(
                    f"an array with axes {logical}: {taken[axis]!r} and {name!r} both fall on the "
                    f"mesh's axis {axis!r}"
                )
            taken[axis] = name
        parts.append(None if not axes else axes[0] if len(axes) == 1 else axes)
    return PartitionSpec(*parts)


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """`spec` on a mesh."""
    return NamedSharding(mesh, spec(*logical))
