"""Writing a checkpoint parameter by parameter, so that none waits in memory for the others."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import tensorstore as ts
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from ratjax.convert.layout import Index
from ratjax.errors import InputError
from ratjax.files import check_new_folder, new_folder
from ratjax.interrupts import interrupts_held
from ratjax.model.checkpoint import PARAMS
from ratjax.model.inspect import open_array

CHUNK_BYTES = 128 << 20
GROUP_BYTES = 1 << 30
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


def spread(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Over all devices of the mesh, along the first axis that they divide; else a copy each."""
    spec = [None] * len(shape)
    divided = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if divided:
        spec[divided[0]] = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(*spec))


def write_parameters(path: pathlib.Path, parts: Mapping[str, Part], mesh: Mesh | None) -> None:
    """Writes an Orbax checkpoint of the parameters.

    Without a mesh, chunk by chunk: memory holds little more than one layer of one parameter.
    With one, parameter by parameter: every host reads the parts of its own devices only.

    Args:
      path: the checkpoint's folder; must not exist.
      parts: by parameter name.
      mesh: see `spread`.

    Raises:
      OSError: the file system refuses, as where the disk has filled up.
    """
    with _system_errors(path):
        with _context():
            for group in _groups(parts):
                with interrupts_held():
                    ocp.partial.save(path, {name: _array(parts[name], mesh) for name in group})
            with interrupts_held():
                ocp.partial.finalize(path)
        if jax.process_index() == 0:
            _rename_item(path)
        if mesh is None:
            for name, part in parts.items():
                _fill(open_array(path / PARAMS, name, write=True), part)


@contextlib.contextmanager
def _system_errors(path: pathlib.Path) -> Iterator[None]:
    """TensorStore reports what the system refuses as a ValueError; here it becomes an OSError."""
    try:
        yield
    except ValueError as error:
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _array(part: Part, mesh: Mesh | None) -> jax.Array | np.ndarray:
    if mesh is None:  # zeros that take no memory: they only hold the place
        return np.broadcast_to(np.zeros((), part.dtype), part.shape)
    return jax.make_array_from_callback(part.shape, spread(mesh, part.shape), part.read)


def _groups(parts: Mapping[str, Part]) -> Iterator[list[str]]:
    """What is written together: single parameters, but small ones by the gigabyte."""
    group: list[str] = []
    for name in parts:
        if group and sum(parts[n].nbytes for n in (*group, name)) > GROUP_BYTES:
            yield group
            group = []
        group.append(name)
    yield group


def _context() -> ocp.Context:
    """Stacked layers become chunks of their own, so that each can be read without the others."""
    storage = ocp.options.ArrayOptions.Saving.StorageOptions

    def chunks(keypath, _):
        stacked = keypath[-1].key.startswith("blocks/")
        return storage(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else None)

    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = chunks
    if hasattr(context.memory, "deepcopy_host_arrays"):  # from Orbax 0.12.5 or so on
        context.memory.deepcopy_host_arrays = False
    return context


def _fill(store: ts.TensorStore, part: Part) -> None:
    """Writes every chunk of an array, one at a time."""
    grid = store.chunk_layout.write_chunk.shape
    starts = (range(0, size, step) for size, step in zip(part.shape, grid, strict=True))
    for corner in itertools.product(*starts):
        box = tuple(
            slice(at, min(at + step, size))
            for at, step, size in zip(corner, grid, part.shape, strict=True)
        )
        with interrupts_held():
            store[box].write(part.read(box)).result()


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
    check_new_folder(target)
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
    try:
        if first:
            part.mkdir(parents=True)
        multihost_utils.sync_global_devices("folder made")
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
