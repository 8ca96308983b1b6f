"""One batch of training as one compiled function, active recurrence learning included.

As published (RAT+'s repository), a batch under active recurrence learning makes two optimizer
steps: one on the gradient of a sparse pass, in which attention sees every 64th key only and so
the memory has to carry what lies between, then one on the gradient of a dense pass over the
same batch. Both are clipped on their own and share AdamW's state and the batch's learning rate.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.model.parameters import to_model
from ratjax.sharding import on_mesh, split_batch
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.pattern import Pattern
from ratjax.train.compiler_options import compiler_options
from ratjax.train.guard import choose, judge
from ratjax.train.loss import loss_sums
from ratjax.train.optimizer import descend, optimizer, rates
from ratjax.train.state import TrainState

Metrics = dict[str, Float32[Array, ""]]


def passes(train: TrainConfig, recurrence: str) -> list[dict[str, Pattern]]:
    """The optimizer steps of one batch, in order; each sums the losses of its patterns."""
    sparse = Dilated(train.recurrence_dilation, train.recurrence_local, train.recurrence_initial)
    return {
        "two_step": [{"sparse": sparse}, {"dense": Dense()}],
        "summed": [{"sparse": sparse, "dense": Dense()}],
        "off": [{"dense": Dense()}],
        "adapt": [{"dense": sparse}],  # by the name of the pass that a run is judged by
    }[recurrence]


@functools.cache  # so that a second run of the same shape in one process compiles nothing
def make_train_step(
    config: ModelConfig, train: TrainConfig, total_steps: int, mesh: Mesh | None = None
) -> Callable[[TrainState, Batch, str, int | None], tuple[TrainState, Metrics]]:
    """The compiled training step.

    Args:
      config: the model.
      train: the optimizer; how batches are cut.
      total_steps: length of the learning-rate schedule.
      mesh: what state and batch lie on, as `ratjax.train.state` says; None: one device.

    Returns:
      A function of (state, batch, recurrence, most_targets) to (next state, metrics);
      `most_targets` is `loss_sums`'s. The state given is donated: its buffers become the next
      one's. Metrics are scalars: `loss` of the dense pass, `grad_norm` before clipping, the
      learning rates, `targets` (how many tokens the loss is the mean of), and for a sparse pass
      `loss_sparse` and, where it steps on its own, `grad_norm_sparse`. Losses are mean cross
      entropies, in nats, without the z-loss. Where the state has a guard: `skipped` optimizer
      steps since the run began, and `skipped_in_row`: since each pass's last good one.
    """
    transform = optimizer(train)

    def objective(parameters, batch, patterns, most_targets):
        model = to_model(config, parameters)
        sums = [
            loss_sums(model, batch, p, train.z_loss, train.loss_chunk, most_targets)
            for p in patterns
        ]
        minimised, entropies = zip(*sums, strict=True)
        return sum(minimised), jnp.stack(entropies)

    def gradient(parameters, batch, patterns, most_targets):
        """Summed over microbatches; the entropies too."""
        differentiate = jax.value_and_grad(objective, has_aux=True)
        if train.microbatches == 1:
            (_, entropies), gradients = differentiate(parameters, batch, patterns, most_targets)
            return gradients, entropies

        def add(total, part):
            (_, entropies), gradients = differentiate(parameters, part, patterns, most_targets)
            return jax.tree.map(jnp.add, total, (gradients, entropies)), None

        parts = jax.tree.map(lambda a: split_batch(a, train.microbatches), batch)
        zeros = jax.tree.map(jnp.zeros_like, parameters), jnp.zeros(len(patterns))
        return jax.lax.scan(add, zeros, parts)[0]

    def train_step(
        state: TrainState, batch: Batch, recurrence: str, most_targets: int | None = None
    ):
        targets = batch.mask.sum().astype(jnp.float32)
        rate = rates(train, total_steps, state.step)
        metrics = {"targets": targets, **rate._asdict()}
        _, parameters, moments, guard = state
        for place, patterns in enumerate(passes(train, recurrence)):
            gradients, entropies = gradient(
                parameters, batch, tuple(patterns.values()), most_targets
            )
            gradients, entropies = jax.tree.map(
                lambda total: total / jnp.maximum(targets, 1), (gradients, entropies)
            )
            direction, next_moments = transform.update(gradients, moments, parameters)
            after = descend(parameters, direction, rate), next_moments
            for name, entropy in zip(patterns, entropies, strict=True):
                metrics["loss" if name == "dense" else f"loss_{name}"] = entropy
            suffix = "" if "dense" in patterns else "_sparse"
            norm = metrics[f"grad_norm{suffix}"] = optax.global_norm(gradients)
            if guard is not None:
                good, guard = judge(guard, place, entropies.sum(), norm, train)
                after = choose(good, after, (parameters, moments))
            parameters, moments = after
        if guard is not None:
            metrics |= {"skipped": guard.skipped, "skipped_in_row": guard.in_row.sum()}
        return TrainState(state.step + 1, parameters, moments, guard), metrics

    compiled = jax.jit(
        train_step,
        static_argnames=("recurrence", "most_targets"),
        donate_argnames="state",
        compiler_options=compiler_options(mesh),
    )
    return on_mesh(mesh, compiled)
