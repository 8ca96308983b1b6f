"""The programs that the launch runs, on shapes alone: nothing of a model is in memory."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ratjax.config.data import DataStage
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.model import Decoder
from ratjax.model.parameters import abstract_parameters, inference_dtypes, to_model
from ratjax.model.storage import shapes_of
from ratjax.shapes import Lengths, PromptKeys, Tokens
from ratjax.sharding import make_mesh
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Pattern
from ratjax.train.flops import attention_flops, forward_flops, step_flops
from ratjax.train.state import abstract_batch, abstract_state
from ratjax.train.step import make_train_step, passes


@dataclasses.dataclass(frozen=True)
class Program:
    """A program ready to be lowered.

    Attributes:
      name: `train`, `prefill` or `decode`.
      lower: lowers it.
      devices: how many it runs on.
      parameters: those of its arguments that are the model.
      optimizer: those that are the optimizer's state.
      inputs: its other arguments.
      tokens: that one run of it reads (decode: writes).
      model_flops: operations that the model needs for one run, all devices together
        (`ratjax.train.flops`).
      dense_flops: the part of them that dense attention's products need.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    devices: int
    parameters: Any
    optimizer: Any
    inputs: Any
    tokens: int
    model_flops: float
    dense_flops: float


def training(
    model: ModelConfig,
    train: TrainConfig,
    stage: DataStage,
    total_steps: int,
    mesh: MeshConfig,
    devices: Sequence[jax.Device],
) -> Program:
    """The training step of one stage, every logit counted.

    Args:
      model: what is trained.
      train: how.
      stage: its batches.
      total_steps: length of the schedule.
      mesh: resolved for these devices; of size 1: the first of them alone.
      devices: to compile for.
    """
    place = make_mesh(mesh, devices) if mesh.size > 1 else None
    step = make_train_step(model, train, total_steps, place)
    state = abstract_state(model, train, place)
    batch = abstract_batch(stage.batch_size, stage.sequence_length, place)
    patterns = [p for group in passes(train, stage.recurrence) for p in group.values()]
    length = stage.sequence_length
    attention = sum(dense_flops(model, pattern, length) for pattern in patterns)
    if place is None:
        state, batch = (on_device(tree, devices[0]) for tree in (state, batch))

    def lower():
        with alone(devices[0]) if place is None else contextlib.nullcontext():
            return step.lower(state, batch, stage.recurrence, None)

    return Program(
        "train",
        lower,
        mesh.size,
        state.parameters,
        state.optimizer,
        batch,
        stage.tokens_per_step,
        step_flops(model, patterns, length, stage.batch_size),
        3 * stage.batch_size * attention,
    )


def prefill(
    model: ModelConfig, pattern: Pattern, batch: int, length: int, new_tokens: int, device: Any
) -> Program:
    """Reading `batch` prompts of `length` tokens on one device, weights in the compute dtype."""
    place = partial(on_device, device=device)
    weights, tokens, lengths, keys = map(place, _prompts(model, batch, length))
    run = jax.jit(partial(_prefill, pattern=pattern, new_tokens=new_tokens))

    def lower():
        with alone(device):
            return run.lower(weights, tokens, lengths, keys)

    flops = batch * forward_flops(model, pattern.prefills_as, length, 1)
    attention = batch * dense_flops(model, pattern.prefills_as, length)
    inputs = tokens, lengths
    return Program("prefill", lower, 1, weights, (), inputs, batch * length, flops, attention)


def decode(
    model: ModelConfig, pattern: Pattern, batch: int, length: int, new_tokens: int, device: Any
) -> Program:
    """One token of each of `batch` sequences behind prompts of `length` tokens, on one device."""
    place = partial(on_device, device=device)
    weights, tokens, lengths, keys = map(place, _prompts(model, batch, length))
    prefilled = lambda *prompts: _prefill(*prompts, pattern, new_tokens)[1]  # noqa: E731
    with alone(device):
        leaves, structure = shapes_of(prefilled, weights, tokens, lengths, keys)
    state = place(leaves)
    last = place(jax.ShapeDtypeStruct((batch, 1), jnp.int32))

    def step(model, tokens, leaves, keys):
        return model.decode(tokens, jax.tree.unflatten(structure, leaves), pattern, keys)

    run = jax.jit(step, donate_argnums=2)

    def lower():
        with alone(device):
            return run.lower(weights, last, state, keys)

    # Attention aside, which is little beside the weights until caches are very long.
    flops = batch * (forward_flops(model, Dense(), 1, 1) - attention_flops(model, Dense(), 1))
    return Program("decode", lower, 1, weights, (), state, batch, flops, 0.0)


def _prefill(
    model: Decoder,
    tokens: Tokens,
    lengths: Lengths,
    keys: PromptKeys,
    pattern: Pattern,
    new_tokens: int,
):
    return model.prefill(tokens, lengths, pattern, new_tokens, keys)


def _prompts(model: ModelConfig, batch: int, length: int) -> tuple[Any, ...]:
    dtypes = inference_dtypes(model)
    weights = {
        name: jax.ShapeDtypeStruct(array.shape, dtypes[name])
        for name, array in abstract_parameters(model).items()
    }
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    return (
        to_model(model, weights),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        keys,
    )


def dense_flops(model: ModelConfig, pattern: Pattern, length: int) -> float:
    """`attention_flops` of a dense pattern; 0 of others."""
    return attention_flops(model, pattern, length) if type(pattern) is Dense else 0.0


def on_device(tree: Any, device: jax.Device) -> Any:
    """The same shapes, all on one device, which need not be there."""
    place = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


@contextlib.contextmanager
def alone(device: jax.Device):
    """Code traced within is for this device, without a mesh."""
    kind = Mesh(np.array([device]), ("device",)).abstract_mesh.abstract_device
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)):
        yield
