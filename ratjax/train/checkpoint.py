"""A run's checkpoints: parameters, optimizer, position in the data, and what they belong to.

<workdir>/checkpoints/<step>/params, /optimizer     Orbax arrays
in its metadata: `position` (of the data iterator) and `signature` (of the run)
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ratjax.config.model import ModelConfig
from ratjax.config.overrides import changes, from_mapping, to_json
from ratjax.errors import InputError
from ratjax.model.checkpoint import CHECKPOINTS, PARAMS, read_or_fail, seal, steps
from ratjax.train.state import TrainState

OPTIMIZER = "optimizer"
# Fields of a model that change how it is computed, not what it is.
COMPUTE_FIELDS = ("model.dtype", "model.remat", "model.unroll")


class Checkpoints:
    """Writes checkpoints in the background and keeps the newest few.

    Args:
      workdir: the run's folder.
      keep: how many to keep.
    """

    def __init__(self, workdir: pathlib.Path, keep: int):
        self.root = (workdir / CHECKPOINTS).absolute()
        self.manager = ocp.training.Checkpointer(
            self.root,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self.unsealed: int | None = None

    def save(
        self, state: TrainState, position: Mapping[str, int], signature: Mapping[str, Any]
    ) -> None:
        """Begins to write `state`; its buffers may be donated as soon as this returns."""
        self.finish()
        step = int(state.step)
        self.manager.save_checkpointables_async(
            step,
            {PARAMS: state.parameters, OPTIMIZER: state.optimizer},
            force=True,
            custom_metadata={"position": dict(position), "signature": dict(signature)},
        )
        self.unsealed = step

    def settle(self) -> None:
        """Seals what has been written meanwhile; returns at once."""
        if self.unsealed is not None and not self.manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> None:
        """Waits for the writing to end, and raises what went wrong in it."""
        if self.unsealed is not None:
            self.manager.wait()
            if jax.process_index() == 0:
                seal(self.root / str(self.unsealed))
            self.unsealed = None

    def close(self) -> None:
        self.finish()
        self.manager.close()


def restore(
    workdir: pathlib.Path, abstract: TrainState, signature: Mapping[str, Any]
) -> tuple[TrainState, dict[str, int]] | None:
    """The newest readable checkpoint of a run.

    Damaged ones are passed over with one line each, and set aside as `<step>.damaged` once an
    older one has been read.

    Args:
      workdir: the run's folder.
      abstract: the state's shapes, and where its arrays go, whatever mesh they were saved from.
      signature: of the run that wants to go on.

    Returns:
      (state, position of the data iterator), or None where there is no checkpoint at all.

    Raises:
      InputError: the run was another one, or none of its checkpoints can be read.
    """
    root = (workdir / CHECKPOINTS).absolute()
    damaged = []
    for step in reversed(steps(workdir)):
        path = root / str(step)
        try:
            metadata = read_or_fail(path, lambda path=path: _metadata(path))
            compare(workdir, metadata["signature"], signature, step)
            arrays = read_or_fail(path, lambda path=path: _arrays(path, abstract))
        except DifferentRunError:
            raise
        except InputError as error:
            print(f"skipped {error}", flush=True)
            damaged.append(path)
            continue
        for other in damaged if jax.process_index() == 0 else ():
            os.replace(other, other.with_name(f"{other.name}.damaged"))
        state = TrainState(np.int32(step), arrays[PARAMS], arrays[OPTIMIZER])
        places = jax.tree.map(lambda a: a.sharding, abstract)
        return jax.device_put(state, places), metadata["position"]
    if damaged:
        raise InputError(
            f"{workdir}: none of its {len(damaged)} checkpoints can be read; restore one of them, "
            "or train in another folder"
        )
    return None


class DifferentRunError(InputError):
    """A checkpoint that belongs to a run whose settings cannot be changed on the way."""


def compare(
    workdir: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any], step: int
) -> None:
    """Says which settings differ from the checkpoint's.

    Args:
      workdir: the run's folder, for messages.
      old: signature in the checkpoint.
      new: signature of the run now.
      step: the checkpoint's; data stages that begin later may differ.

    Raises:
      DifferentRunError: the model, the seed or the data differ.
    """
    # Fields that the model has gained since then had their defaults.
    old = {**old, "model": to_json(from_mapping(ModelConfig, old["model"]))}
    old, new = ({**s, "data": [d for d in s["data"] if d["start"] < step]} for s in (old, new))
    for name, before, after in changes(old, new):
        if name.startswith("train.") or name in COMPUTE_FIELDS:
            print(f"resuming with {name}={after!r}, before it was {before!r}", flush=True)
        else:
            raise DifferentRunError(
                f"{workdir}: was trained with {name}={before!r}, now it is {after!r}; a run "
                "cannot change that: set it back, or train in another folder"
            )


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    metadata = ocp.checkpointables_metadata(path).custom_metadata
    return {key: metadata[key] for key in ("position", "signature")}


def _arrays(path: pathlib.Path, abstract: TrainState) -> dict[str, Any]:
    wanted = {PARAMS: abstract.parameters, OPTIMIZER: abstract.optimizer}
    return ocp.load_checkpointables(path, wanted)
