"""The training step against AdamW by hand: what is differentiated, in which order, how often."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ratjax.config.train import TrainConfig
from ratjax.model.parameters import to_model
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.train.optimizer import initial, rates
from ratjax.train.step import TrainState, make_train_step, passes
from tests.train.conftest import random_parameters

TOTAL = 10
TRAIN = TrainConfig(
    learning_rate=1e-2,
    memory_learning_rate=3e-2,
    epsilon=1e-3,  # of the gradients' own size: AdamW else blows rounding up to whole steps
    warmup=0.0,
    recurrence_dilation=4,
)
SPARSE, DENSE = Dilated(4), Dense()


def fresh(config):
    parameters = random_parameters(config)
    return TrainState(jnp.int32(0), parameters, initial(TRAIN, parameters))


@functools.cache
def mean_loss(config, pattern):
    """The mean cross entropy, with its gradient."""

    def loss(parameters, batch):
        logits = to_model(config, parameters)(batch.tokens, pattern)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.where(batch.mask, entropy, 0).sum() / batch.mask.sum()

    return jax.jit(jax.value_and_grad(loss))


ADAMW = optax.chain(
    optax.clip_by_global_norm(TRAIN.clip_norm),
    optax.adamw(1.0, TRAIN.beta1, TRAIN.beta2, TRAIN.epsilon, weight_decay=0.1),
)


@jax.jit
def adamw_step(parameters, state, gradients):
    gradient = jax.tree.map(lambda *parts: sum(parts), *gradients)
    update, state = ADAMW.update(gradient, state, parameters)
    rates = {name: 3e-2 if "/memory/" in name else 1e-2 for name in parameters}
    return {n: p + rates[n] * update[n] for n, p in parameters.items()}, state


def by_hand(config, batch, steps):
    """AdamW steps on the means of the given lists of patterns, at the peak rates."""
    parameters = random_parameters(config)
    state, losses = jax.jit(ADAMW.init)(parameters), []
    for patterns in steps:
        pairs = [mean_loss(config, pattern)(parameters, batch) for pattern in patterns]
        losses += [float(value) for value, _ in pairs]
        parameters, state = adamw_step(parameters, state, [gradient for _, gradient in pairs])
    return parameters, losses


def assert_close(one, other):
    for name in other:
        # rounding of float32 sums in another order, through AdamW with the epsilon above
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=5e-5, err_msg=name)


def test_two_step_is_sparse_first_then_dense(memory_config, batch):
    step = make_train_step(memory_config, TRAIN, TOTAL)
    state, metrics = step(fresh(memory_config), batch, "two_step")
    parameters, losses = by_hand(memory_config, batch, [[SPARSE], [DENSE]])
    assert sum("/memory/" in name for name in parameters) == 2
    assert_close(state.parameters, parameters)
    np.testing.assert_allclose([metrics["loss_sparse"], metrics["loss"]], losses, rtol=1e-5)
    assert int(state.step) == 1  # of the schedule
    assert int(state.optimizer[1].count) == 2  # of AdamW's bias correction

    reversed_order, _ = by_hand(memory_config, batch, [[DENSE], [SPARSE]])
    gap = max(np.abs(np.subtract(reversed_order[n], parameters[n])).max() for n in parameters)
    assert gap > 1e-3  # twenty times the tolerance above: the order shows


def test_off_is_one_dense_step(memory_config, batch):
    step = make_train_step(memory_config, TRAIN, TOTAL)
    state, metrics = step(fresh(memory_config), batch, "off")
    parameters, losses = by_hand(memory_config, batch, [[DENSE]])
    assert_close(state.parameters, parameters)
    np.testing.assert_allclose(metrics["loss"], losses[0], rtol=1e-5)
    names = {"grad_norm", "learning_rate", "loss", "memory_learning_rate", "targets"}
    assert set(metrics) == names


def test_the_schedule_moves_once_a_batch(memory_config, batch):
    step, state = make_train_step(memory_config, TRAIN, TOTAL), fresh(memory_config)
    for number, recurrence in enumerate(("off", "two_step", "two_step", "off")):
        state, metrics = step(state, batch, recurrence)
        for name, rate in rates(TRAIN, TOTAL, jnp.int32(number))._asdict().items():
            # compiled into the step, the cosine may round differently
            np.testing.assert_allclose(metrics[name], rate, rtol=1e-6)


def test_the_passes_are_the_same_for_both_backbones_and_take_the_configured_pattern():
    train = dataclasses.replace(TRAIN, recurrence_local=2, recurrence_initial=1)
    sparse = Dilated(4, 2, 1)
    assert passes(train, "two_step") == [{"sparse": sparse}, {"dense": Dense()}]
    assert passes(train, "summed") == [{"sparse": sparse, "dense": Dense()}]
    assert passes(train, "off") == [{"dense": Dense()}]


def test_microbatches_equal_one_batch_and_summed_is_one_step_on_both_losses(memory_config, batch):
    """Microbatches with 0, 1, 3 and 8 targets: sums are divided once, by all of them."""
    train = dataclasses.replace(TRAIN, microbatches=4)
    step = make_train_step(memory_config, train, TOTAL)
    state, metrics = step(fresh(memory_config), batch, "summed")
    parameters, losses = by_hand(memory_config, batch, [[SPARSE, DENSE]])  # the batch as a whole
    assert_close(state.parameters, parameters)
    np.testing.assert_allclose([metrics["loss_sparse"], metrics["loss"]], losses, rtol=1e-5)
    assert float(metrics["targets"]) == 12
    assert "grad_norm_sparse" not in metrics
    assert int(state.optimizer[1].count) == 1


def test_state_is_donated(memory_config, batch):
    state = fresh(memory_config)
    make_train_step(memory_config, TRAIN, TOTAL)(state, batch, "off")
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.parameters))


def test_a_batch_without_targets_changes_nothing_but_the_decay(memory_config, batch):
    empty = batch._replace(mask=jnp.zeros_like(batch.mask))
    step = make_train_step(memory_config, TRAIN, TOTAL)
    state, metrics = step(fresh(memory_config), empty, "off")
    start = random_parameters(memory_config)
    assert float(metrics["loss"]) == 0.0
    for name, value in state.parameters.items():
        rate = 3e-2 if "/memory/" in name else 1e-2
        np.testing.assert_allclose(value, start[name] * (1 - rate * 0.1), rtol=1e-5)
