"""Writing a checkpoint parameter by parameter, so that none waits in memory for the others."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from ratjax.convert.layout import Index
from ratjax.errors import InputError
from ratjax.files import new_folder
from ratjax.model.checkpoint import PARAMS

CHUNK_BYTES = 128 << 20
SLACK_BYTES = 64 << 20  # metadata, tokenizer, and what a file system rounds up
ORBAX_METADATA = "_CHECKPOINT_METADATA"


class Part(NamedTuple):
    """A parameter to be written: its shape and dtype, and a function that reads any part."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def spread(mesh: Mesh | None, shape: tuple[int, ...]) -> Sharding:
    """Over all devices of the mesh, along the first axis that they divide; else a copy each.

    Without a mesh: this host's memory, whatever accelerators there are.
    """
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    spec = [None] * len(shape)
    divided = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if divided:
        spec[divided[0]] = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(*spec))


def write_parameters(path: pathlib.Path, parts: Mapping[str, Part], mesh: Mesh | None) -> None:
    """Writes an Orbax checkpoint of the parameters, one after the other.

    Every host reads the parts of its own devices only. Stacked layers become chunks of their
    own, so that one layer can be read without the others.

    Args:
      path: the checkpoint's folder; must not exist.
      parts: by parameter name.
      mesh: see `spread`.
    """
    stacked = {name for name in parts if name.startswith("blocks/")}
    storage = ocp.options.ArrayOptions.Saving.StorageOptions

    def chunks(keypath, _):
        by_layer = keypath[-1].key in stacked
        return storage(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if by_layer else None)

    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = chunks
    with context:
        for name, part in parts.items():
            sharding = spread(mesh, part.shape)
            array = jax.make_array_from_callback(part.shape, sharding, part.read)
            ocp.partial.save(path, {name: array})
            array.delete()
        ocp.partial.finalize(path)
    if jax.process_index() == 0:
        _rename_item(path)


def _rename_item(path: pathlib.Path) -> None:
    """Gives what Orbax's partial saving calls "state" the name that model folders use."""
    (item,) = (entry for entry in path.iterdir() if entry.is_dir())
    os.replace(item, path / PARAMS)
    metadata = json.loads((path / ORBAX_METADATA).read_text())
    handler = ocp.handlers.PyTreeHandler
    metadata["item_handlers"] = {PARAMS: f"{handler.__module__}.{handler.__qualname__}"}
    (path / ORBAX_METADATA).write_text(json.dumps(metadata))


def check_target(target: pathlib.Path, nbytes: int) -> None:
    """Raises `InputError` if `target` cannot be written: not empty, or too little space."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists and is not empty; remove it or choose another name")
    place = target.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{target}: cannot be made, {place} is a file")
    free, needed = shutil.disk_usage(place).free, nbytes + SLACK_BYTES
    if free < needed:
        raise InputError(
            f"{target}: needs {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; make "
            "room or choose another place"
        )


@contextlib.contextmanager
def new_shared_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """`ratjax.files.new_folder`, made by the first of several hosts that share a file system."""
    if jax.process_count() == 1:
        with new_folder(target) as part:
            yield part
        return
    number = int(multihost_utils.broadcast_one_to_all(np.int32(os.getpid())))
    target = target.absolute()
    part = target.with_name(f".{target.name}.{number}.part")
    first = jax.process_index() == 0
    if first:
        part.mkdir(parents=True)
    multihost_utils.sync_global_devices("folder made")
    try:
        yield part
        multihost_utils.sync_global_devices("folder filled")
        if first:
            os.replace(part, target)
        multihost_utils.sync_global_devices("folder in place")
    except BaseException:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        raise


def leftovers(target: pathlib.Path) -> list[pathlib.Path]:
    """Temporary folders of conversions to this target that were killed (or still run)."""
    return sorted(target.absolute().parent.glob(f".{target.name}.*.part"))
