"""The mesh: devices arranged so that the axes with most traffic get the shortest ways."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, SingleDeviceSharding

from ratjax.config.mesh import AXES, MeshConfig
from ratjax.errors import ConfigError

# From least to most traffic, which is how JAX wants them when it places a mesh on a torus.
_BY_TRAFFIC = ("data", "fsdp", "context", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a configuration, its axes explicit.

    Args:
      config: sizes, one of which may be -1.
      devices: what to build it of; those of a topology, which are not attached, will do. None:
        all of JAX's (with all sizes 1, the first).

    Raises:
      ConfigError: the sizes do not come to the number of devices, or the slices of a pod do not
        divide the data axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    config = config.resolve(len(devices))
    devices = devices[: config.size]
    sizes = [getattr(config, axis) for axis in _BY_TRAFFIC]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if config.data % slices:
            raise ConfigError(
                "mesh.data", config.data, f"must be a multiple of the {slices} slices it runs over"
            )
        across = [slices, 1, 1, 1]
        within = [size // by for size, by in zip(sizes, across, strict=True)]
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    grid = np.transpose(grid, [_BY_TRAFFIC.index(axis) for axis in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def sizes_of(mesh: Mesh | AbstractMesh) -> MeshConfig:
    """The configuration that a mesh is of."""
    return MeshConfig(**mesh.shape)


def first_device() -> SingleDeviceSharding:
    """Everything on the first device: where arrays lie without a mesh."""
    return SingleDeviceSharding(jax.devices()[0])


def active_mesh() -> AbstractMesh | None:
    """The mesh of `make_mesh` that code is traced under.

    None where there is none, and within `jax.shard_map`, where arrays are a device's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.axis_names != AXES or mesh.are_all_axes_manual else mesh


def on_mesh(mesh: Mesh | None, function: Callable) -> Callable:
    """A jitted function that traces and runs under a mesh; itself where that is None."""
    return function if mesh is None else _OnMesh(mesh, function)


class _OnMesh:
    """A jitted function and its mesh."""

    def __init__(self, mesh: Mesh, function: Callable):
        self.mesh, self.function = mesh, function

    def __call__(self, *args, **kwargs):
        with jax.set_mesh(self.mesh):
            return self.function(*args, **kwargs)

    def lower(self, *args, **kwargs) -> jax.stages.Lowered:
        """As `jax.jit`'s; takes `jax.ShapeDtypeStruct`s with shardings."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(*args, **kwargs)
