"""A training step from a file, in the place of the one that the launch would compile."""

import pathlib
from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh

from ratjax.ahead import executable
from ratjax.config.data import Span
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.sharding import sizes_of
from ratjax.train.loss import logit_positions
from ratjax.train.state import abstract_batch, abstract_state
from ratjax.train.step import make_train_step


def saved_step(
    path: pathlib.Path,
    model: ModelConfig,
    train: TrainConfig,
    spans: tuple[Span, ...],
    mesh: Mesh | None,
) -> tuple[Callable, str]:
    """The training step, compiled before for one of the stages; other stages are compiled.

    Args:
      path: what `launch.compile_ahead --save` wrote.
      model: what is trained.
      train: how.
      spans: the schedule.
      mesh: what it runs on; None: one device.

    Returns:
      (a function as `make_train_step` gives one, what to tell the user in one line).

    Raises:
      InputError: the file is missing or holds something else.
    """
    total = spans[-1].stop
    step = make_train_step(model, train, total, mesh)
    sizes = MeshConfig(1) if mesh is None else sizes_of(mesh)
    kind = (jax.devices() if mesh is None else mesh.devices.flat)[0].device_kind
    problem = ""
    for span in spans:
        stage = span.stage
        key = executable.key_of(model, train, stage, total, sizes, kind)
        batch = abstract_batch(stage.batch_size, stage.sequence_length, mesh)
        state = abstract_state(model, train, mesh)
        lower = partial(step.lower, state, batch, stage.recurrence, None)
        compiled, problem = executable.load(path, key, lower)
        if compiled is not None:
            shape = batch.tokens.shape
            return _either(compiled, shape, stage.recurrence, step), f"{path}: loaded"
    return step, problem


def _either(compiled, shape, recurrence, step):
    """The compiled program where the arguments are its own, and `step` elsewhere.

    It was compiled with the logits of all positions, which is what a batch with many targets needs.
    """

    def run(state, batch, asked, most_targets=None):
        everywhere = logit_positions(shape[1], most_targets) == shape[1]
        if everywhere and (batch.tokens.shape, asked) == (shape, recurrence):
            return compiled(state, batch)
        return step(state, batch, asked, most_targets)

    return run
