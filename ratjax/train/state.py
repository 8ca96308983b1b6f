"""The state of a run: what it is made of, where it lies, and how it begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Int32

from ratjax.config.model import ModelConfig
from ratjax.config.overrides import changes, to_json
from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.files import Folder, as_folder
from ratjax.model.checkpoint import locate, newest_step, read_config, read_parameters
from ratjax.model.parameters import AbstractParameters, Parameters, initial_parameters, is_memory
from ratjax.model.placement import placed_parameters
from ratjax.sharding import first_device, sharding
from ratjax.train import optimizer
from ratjax.train.guard import Guard, initial_guard


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: batches trained on.
      parameters: float32, by name.
      optimizer: AdamW's moments and its own count of steps.
      guard: what the guard remembers; None without one.
    """

    step: Int32[Array, ""]
    parameters: Parameters
    optimizer: optax.OptState
    guard: Guard | None = None


def abstract_state(config: ModelConfig, train: TrainConfig, mesh: Mesh | None = None) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing.

    Args:
      config: the model.
      train: the optimizer.
      mesh: what the state lies on: a moment where its parameter does, counters everywhere. None:
        all on the first device.
    """
    parameters = placed_parameters(config, mesh)
    everywhere = first_device() if mesh is None else sharding(mesh)

    def place(path, array):
        owner = parameters.get(getattr(path[-1], "key", None)) if path else None
        return array.update(sharding=everywhere if owner is None else owner.sharding)

    bare = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in parameters.items()}
    moments = jax.eval_shape(optimizer.optimizer(train).init, bare)
    moments = jax.tree_util.tree_map_with_path(place, moments)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    guard = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), initial_guard(train)
    )
    return TrainState(step, parameters, moments, guard)


def abstract_batch(batch_size: int, length: int, mesh: Mesh | None = None) -> Batch:
    """Shapes, dtypes and shardings of a batch on a mesh, or on the first device."""
    place = batch_sharding(mesh)
    whole, flags = (
        jax.ShapeDtypeStruct((batch_size, length), dtype, sharding=place)
        for dtype in (jnp.int32, jnp.bool_)
    )
    return Batch(whole, whole, flags, flags)


def batch_sharding(mesh: Mesh | None) -> Sharding:
    """Where the [B, T] arrays of a batch lie."""
    return first_device() if mesh is None else sharding(mesh, "batch", "time")


def place_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """A batch from the data pipeline, on the mesh; as it is without one.

    Every process holds the whole batch (some megabytes) and gives its devices their part.
    """
    if mesh is None:
        return batch
    place = batch_sharding(mesh)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(place, np.asarray(a), a.shape), batch
    )


def fresh_state(config: ModelConfig, train: TrainConfig, mesh: Mesh | None = None) -> TrainState:
    """The state before the first step: random parameters, or those of `train.init_from`.

    On a mesh every array is made in parts, where the parts belong.
    """
    abstract = abstract_state(config, train, mesh)
    places = jax.tree.map(lambda a: a.sharding, abstract)
    start = {}
    if train.init_from:
        start = parameters_from(as_folder(train.init_from), config, abstract.parameters)
    random = initial_parameters(config, None if mesh is None else places.parameters)
    parameters = random(jax.random.key(train.seed)) | start
    moments = optimizer.initial(train, parameters, None if mesh is None else places.optimizer)
    state = TrainState(np.int32(0), parameters, moments, initial_guard(train))
    # Placed as a restored state is: else the step would compile once for each.
    return jax.device_put(state, places)


def parameters_from(path: Folder, config: ModelConfig, wanted: AbstractParameters) -> Parameters:
    """Another model's parameters. A memory that it lacks is left out of the result.

    Args:
      path: a model folder, or one of its checkpoints.
      config: the model that gets them.
      wanted: its parameters, and where they go.
    """
    folder, step = locate(path, None)
    step = newest_step(folder) if step is None else step
    theirs, ours = ({**to_json(c), "memory": None} for c in (read_config(folder), config))
    for name, before, after in changes(theirs, ours):
        print(f"{path}: was made with model.{name}={before!r}, now it is {after!r}", flush=True)
    optional = frozenset(filter(is_memory, wanted))
    return read_parameters(folder, step, wanted, optional)
