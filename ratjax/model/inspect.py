"""Looking into a checkpoint: what is in it, and single layers or slices of what is in it."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

from ratjax.config.model import ModelConfig
from ratjax.errors import InputError, nearest
from ratjax.files import read_json
from ratjax.model.checkpoint import (
    CHECKPOINTS,
    MODEL,
    PARAMS,
    locate,
    newest_step,
    read_config,
    read_or_fail,
    steps,
)


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """One array of a checkpoint, described.

    Attributes:
      shape: layers first, where it is stacked.
      dtype: as stored.
      chunks: shape of what is read at once.
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Before compression."""
        return self.size * _numpy_dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint that is open for looking; holds no arrays. `str()` of it is a table.

    Attributes:
      folder: the model folder.
      step: which of its checkpoints.
      config: the model.
      parameters: every array by name.
      metadata: model.json: versions, and where the model came from.
    """

    folder: pathlib.Path
    step: int
    config: ModelConfig
    parameters: dict[str, StoredParameter]
    metadata: dict[str, Any]

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(parameter.size for parameter in self.parameters.values())

    def read(self, name: str, index: Any = ()) -> np.ndarray:
        """Reads a slice of one array; what lies in other chunks is not touched.

        Args:
          name: of the parameter.
          index: anything NumPy's basic indexing takes: a layer's number, a tuple of slices;
            () reads all.

        Raises:
          InputError: no such parameter (the nearest are named), an index outside of it, or a
            damaged checkpoint.
        """
        if name not in self.parameters:
            raise InputError(f"{name}: no such parameter; {nearest(name, self.parameters)}")
        path = self.folder / CHECKPOINTS / str(self.step)

        def load() -> np.ndarray:
            return np.asarray(open_array(path / PARAMS, name)[index].read().result())

        try:
            return load()
        except (IndexError, ValueError) as error:
            if isinstance(error, IndexError) or "OUT_OF_RANGE" in str(error):
                shape = list(self.parameters[name].shape)
                raise InputError(f"{name}[{index}]: outside of its shape {shape}") from None
            reason = str(error).splitlines()[0][:150]
            raise InputError(f"{path}: damaged: {name} cannot be read ({reason})") from None

    def tree(self) -> dict[str, Any]:
        """The parameters as nested dictionaries, one level for each part of their names."""
        root: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            *parents, leaf = name.split("/")
            functools.reduce(lambda node, part: node.setdefault(part, {}), parents, root)[leaf] = (
                parameter
            )
        return root

    def __str__(self) -> str:
        rows = [
            (name, "x".join(map(str, p.shape)), p.dtype, f"{p.size:,}", f"{p.nbytes / 1e6:,.2f} MB")
            for name, p in self.parameters.items()
        ]
        nbytes = sum(p.nbytes for p in self.parameters.values())
        rows.append(("total", "", "", f"{self.size:,}", f"{nbytes / 1e6:,.2f} MB"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        origin = self.metadata.get("provenance", {})
        head = [f"{self.folder}, step {self.step} of {', '.join(map(str, steps(self.folder)))}"]
        head += [f"  {k}: {v}" for k, v in origin.items() if isinstance(v, str | int | float)]
        versions = self.metadata.get("versions", {})
        head.append("  written by " + ", ".join(f"{k} {v}" for k, v in versions.items()))
        return "\n".join([*head, "", *(line.rstrip() for line in lines)])


def inspect(path: str | os.PathLike, step: int | None = None) -> Inspection:
    """Opens a checkpoint for looking; reads no arrays and needs no accelerator.

    Args:
      path: a model folder, or one of its `checkpoints/<step>` folders.
      step: which checkpoint; None takes the newest.

    Raises:
      InputError: no model there, no such checkpoint, or a damaged one.
    """
    folder, step = locate(pathlib.Path(path), step)
    config = read_config(folder)
    step = newest_step(folder) if step is None else step
    checkpoint = (folder / CHECKPOINTS / str(step)).absolute()
    if not checkpoint.is_dir():
        known = ", ".join(map(str, steps(folder))) or "none"
        raise InputError(f"{checkpoint}: no such checkpoint; steps there: {known}")

    def describe() -> dict[str, StoredParameter]:
        arrays = ocp.checkpointables_metadata(checkpoint).metadata[PARAMS]
        return {
            name: StoredParameter(
                tuple(array.shape), str(array.dtype), tuple(array.storage_metadata.chunk_shape)
            )
            for name, array in sorted(arrays.items())
        }

    parameters = read_or_fail(checkpoint, describe)
    return Inspection(folder.absolute(), step, config, parameters, read_json(folder / MODEL))


def open_array(item: pathlib.Path, name: str, write: bool = False) -> ts.TensorStore:
    """One array of an Orbax item (a folder such as checkpoints/0/params): Zarr 3 in OCDBT."""
    base = {"driver": "file", "path": f"{item.absolute()}/"}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        # Orbax takes an absent chunk for a damaged array, even where it would be all zeros.
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, open=True, read=True, write=write).result()


def _numpy_dtype(name: str) -> np.dtype:
    return ts.dtype(name).numpy_dtype
