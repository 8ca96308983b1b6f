"""The loss on text that is not trained on."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from ratjax.config.data import DataStage, Span
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batch, Batches
from ratjax.model.parameters import Parameters, to_model
from ratjax.sharding import on_mesh, split_batch
from ratjax.sparsity.pattern import Pattern
from ratjax.train.loss import loss_sums
from ratjax.train.state import place_batch
from ratjax.train.step import passes

SEED = 0  # of the batches' order: the same for every run, so that their losses compare


@functools.cache
def make_entropy(
    config: ModelConfig, microbatches: int, loss_chunk: int, mesh: Mesh | None = None
) -> Callable[[Parameters, Batch, Pattern, int | None], Float32[Array, " 2"]]:
    """The compiled sums over a batch: cross entropy under a pattern, and number of targets.

    Args:
      config: the model.
      microbatches: parts that a batch is read in, as in training.
      loss_chunk: as in training.
      mesh: what parameters and batch lie on.
    """

    def sums(parameters, batch, pattern, most_targets):
        model = to_model(config, parameters)
        _, entropy = loss_sums(model, batch, pattern, 0.0, loss_chunk, most_targets)
        return jnp.stack([entropy, batch.mask.sum().astype(jnp.float32)])

    def entropy(parameters: Parameters, batch: Batch, pattern: Pattern, most_targets: int | None):
        parts = jax.tree.map(lambda a: split_batch(a, microbatches), batch)
        return jax.lax.map(lambda part: sums(parameters, part, pattern, most_targets), parts).sum(0)

    return on_mesh(mesh, jax.jit(entropy, static_argnames=("pattern", "most_targets")))


class HeldOut:
    """The batches of `train.held_out`: the same at every measurement of a stage.

    Args:
      config: the model.
      train: which folders, and how many batches.
      spans: the run's stages, whose batch shapes the batches have.
      mesh: the devices of the run.

    Raises:
      InputError: a folder that cannot be used.
    """

    def __init__(
        self, config: ModelConfig, train: TrainConfig, spans: tuple[Span, ...], mesh: Mesh | None
    ):
        self.train, self.count, self.mesh = train, train.held_out_batches, mesh
        self.entropy = make_entropy(config, train.microbatches, train.loss_chunk, mesh)
        self.batches: dict[int, Batches] = {}
        for span in spans:
            shape = span.stage.sequence_length, span.stage.batch_size
            stage = DataStage(self.count, *shape, train.held_out)
            only = (Span(0, self.count, 0, stage),)
            self.batches[span.index] = Batches(only, SEED, config.vocab_size)

    def loss(self, parameters: Parameters, span: Span) -> float:
        """Mean cross entropy over all targets of the pass that gives `loss`; waits for it."""
        pattern = passes(self.train, span.stage.recurrence)[-1]["dense"]
        batches = self.batches[span.index]
        most = batches.most_targets(batches.spans[0])
        parts = (place_batch(batches[n], self.mesh) for n in range(self.count))
        total = sum(jax.device_get(self.entropy(parameters, part, pattern, most)) for part in parts)
        return float(total[0] / max(total[1], 1))
