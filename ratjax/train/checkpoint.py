"""A run's checkpoints: parameters, optimizer, position in the data, and what they belong to.

<workdir>/checkpoints/<step>/params, /optimizer     Orbax arrays
in its metadata: `position` (of the data iterator), `signature` (of the run), `guard` (its memory
of losses), `provenance` (config, git revision) and `versions`
"""

import itertools
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ratjax.config.model import ModelConfig
from ratjax.config.overrides import changes, from_mapping, to_json
from ratjax.config.train import TrainConfig
from ratjax.data import Batches
from ratjax.errors import InputError
from ratjax.files import Folder, absolute, is_remote
from ratjax.interrupts import interrupts_held
from ratjax.model.checkpoint import CHECKPOINTS, PARAMS, read_or_fail, seal, steps
from ratjax.provenance import versions
from ratjax.train.guard import from_plain, to_plain
from ratjax.train.state import TrainState

OPTIMIZER = "optimizer"
# Fields of a model that change how it is computed, not what it is.
COMPUTE_FIELDS = ("model.dtype", "model.remat", "model.unroll")


class Checkpoints:
    """Writes checkpoints in the background and keeps some of them.

    Args:
      workdir: the run's folder.
      train: which to keep: the newest `keep`, every `keep_every` steps, the `keep_best` best.
      provenance: kept in each checkpoint.

    Attributes:
      last_seconds: that the last one took, from `save` to its being whole.
    """

    def __init__(
        self, workdir: Folder, train: TrainConfig, provenance: Mapping[str, Any] | None = None
    ):
        self.root = absolute(workdir / CHECKPOINTS)
        self.notes = {"provenance": dict(provenance or {}), "versions": versions()}
        self.manager = ocp.training.Checkpointer(
            self.root, preservation_policy=_kept(train), cleanup_tmp_directories=True
        )
        self.unsealed: tuple[int, ocp.AsyncResponse] | None = None
        self.began = self.last_seconds = 0.0

    def save(
        self,
        state: TrainState,
        position: Mapping[str, int],
        signature: Mapping[str, Any],
        loss: float | None = None,
    ) -> None:
        """Begins to write `state`; its buffers may be donated as soon as this returns.

        Args:
          state: after some step.
          position: of the data iterator.
          signature: of the run.
          loss: that `keep_best` goes by; None: this checkpoint is never one of the best.
        """
        self.finish()
        step = int(state.step)
        self.began = time.monotonic()
        with interrupts_held():
            writing = self.manager.save_checkpointables_async(
                step,
                {PARAMS: state.parameters, OPTIMIZER: state.optimizer},
                force=True,
                metrics=None if loss is None else {"loss": loss},
                custom_metadata={
                    "position": dict(position),
                    "signature": dict(signature),
                    "guard": to_plain(jax.device_get(state.guard)),
                    **self.notes,
                },
            )
            self.unsealed = step, writing

    def settle(self) -> None:
        """Seals what has been written meanwhile; returns at once."""
        if self.unsealed is not None and not self.manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> None:
        """Waits for the writing to end, and raises what went wrong in it."""
        if self.unsealed is not None:
            (step, writing), self.unsealed = self.unsealed, None
            writing.result()  # also ends its thread, which else stays with three open files
            self.manager.wait()
            self.last_seconds = time.monotonic() - self.began
            if jax.process_index() == 0:
                seal(self.root / str(step))

    def close(self) -> None:
        self.finish()
        self.manager.close()


def _kept(train: TrainConfig):
    """Orbax's policy for what `train` keeps."""
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(train.keep)]
    if train.keep_every:
        kept.append(policies.EveryNSteps(train.keep_every))
    if train.keep_best:
        kept.append(
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["loss"],
                reverse=True,
                n=train.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return policies.AnyPreservationPolicy(kept)


def restore(
    workdir: Folder, abstract: TrainState, signature: Mapping[str, Any]
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
    root = absolute(workdir / CHECKPOINTS)
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
            _set_aside(other)
        fresh = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract.guard)
        guard = from_plain(metadata.get("guard"), fresh)
        state = TrainState(np.int32(step), arrays[PARAMS], arrays[OPTIMIZER], guard)
        places = jax.tree.map(lambda a: a.sharding, abstract)
        return jax.device_put(state, places), metadata["position"]
    if damaged:
        raise InputError(
            f"{workdir}: none of its {len(damaged)} checkpoints can be read; restore one of them, "
            "or train in another folder"
        )
    return None


def _set_aside(path: Folder) -> None:
    names = (f"{path.name}.damaged" + (f".{n}" if n > 1 else "") for n in itertools.count(1))
    other = next(o for o in map(path.with_name, names) if not o.exists())
    path.rename(other) if is_remote(path) else os.replace(path, other)


def signature_of(config: ModelConfig, train: TrainConfig, batches: Batches) -> dict[str, Any]:
    """What a run is, for `compare` when it goes on."""
    settings = to_json(train)
    seed = settings.pop("seed")
    data = batches.signature()
    return {"model": to_json(config), "train": settings, "seed": seed, "data": data}


class DifferentRunError(InputError):
    """A checkpoint that belongs to a run whose settings cannot be changed on the way."""


def compare(workdir: Folder, old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> None:
    """Says which settings differ from the checkpoint's.

    Args:
      workdir: the run's folder, for messages.
      old: signature in the checkpoint.
      new: signature of the run now.
      step: the checkpoint's; data stages that begin later may differ.

    Raises:
      DifferentRunError: the model, the seed or the data differ.
    """
    # Fields that have been added since then had their defaults.
    old = {
        **old,
        "model": to_json(from_mapping(ModelConfig, old["model"])),
        "train": {k: v for k, v in to_json(TrainConfig()).items() if k != "seed"} | old["train"],
    }
    old, new = ({**s, "data": [d for d in s["data"] if d["start"] < step]} for s in (old, new))
    for name, before, after in changes(old, new):
        if name.startswith("train.") or name in COMPUTE_FIELDS:
            print(f"resuming with {name}={after!r}, before it was {before!r}", flush=True)
        else:
            raise DifferentRunError(
                f"{workdir}: was trained with {name}={before!r}, now it is {after!r}; a run "
                "cannot change that: set it back, or train in another folder"
            )


def _metadata(path: Folder) -> dict[str, Any]:
    metadata = ocp.checkpointables_metadata(path).custom_metadata
    return {key: metadata[key] for key in ("position", "signature")} | metadata


def _arrays(path: Folder, abstract: TrainState) -> dict[str, Any]:
    wanted = {PARAMS: abstract.parameters, OPTIMIZER: abstract.optimizer}
    return ocp.load_checkpointables(path, wanted)
