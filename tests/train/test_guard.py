"""Bad steps: what counts as one, and that it leaves no trace but in the count."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.train import guard
from ratjax.train.guard import Guard, forget_losses, from_plain, initial_guard, to_plain
from ratjax.train.optimizer import initial
from ratjax.train.step import TrainState, make_train_step
from ratjax.train.stopping import TrainingStopped, check_step
from tests.train.conftest import random_parameters
from tests.train.test_step import TOTAL, TRAIN, fresh

SKIP = dataclasses.replace(TRAIN, on_bad_step="skip", spike=3.0, spike_window=8)
NORM = jnp.float32(1.0)
judge = jax.jit(guard.judge, static_argnames=("place", "train"))


def judged(losses, train=SKIP, place=0):
    """The verdicts on a sequence of losses, and the guard after them."""
    known, verdicts = initial_guard(train), []
    for loss in losses:
        good, known = judge(known, place, jnp.float32(loss), NORM, train)
        verdicts.append(bool(good))
    return verdicts, known


def test_no_guard_without_a_policy_that_needs_one():
    assert initial_guard(TrainConfig()) is None
    assert initial_guard(TrainConfig(spike=6.0)) is not None
    assert initial_guard(TrainConfig(on_bad_step="skip")) is not None


def test_mean_and_variance_are_those_of_the_good_losses():
    losses = np.random.default_rng(0).normal(5, 0.1, 8).astype(np.float32)
    verdicts, known = judged([*losses[:4], math.nan, math.inf, *losses[4:]])
    assert verdicts == [True] * 4 + [False] * 2 + [True] * 4
    count, mean, variance = known.losses[0]
    assert count == 8
    np.testing.assert_allclose([mean, variance], [losses.mean(), losses.var()], rtol=1e-4)
    assert np.all(np.asarray(known.losses[1]) == 0)  # the other pass has its own
    assert float(known.skipped) == 2 and known.in_row.tolist() == [0, 0]


def test_beyond_the_window_old_losses_fade():
    _, known = judged([5.0] * 8 + [4.0] * 80)
    _, mean, variance = known.losses[0]
    # 80 losses at a weight of 1/8 leave (7/8)^80 = 2e-5 of the first ones
    np.testing.assert_allclose([mean, variance], [4.0, 0.0], atol=1e-3)


def test_a_spike_is_judged_by_the_deviation_and_only_after_the_window():
    calm = [5.0, 5.2] * 4  # deviation 0.1
    verdicts, known = judged([5.0, 5.2, 9.0, 5.2])
    assert all(verdicts)  # too few losses to say
    verdicts, known = judged([*calm, 5.35, 5.8, 5.1])
    assert verdicts[-3:] == [True, False, True]
    verdicts, known = judged([*calm, 6.0, 6.0, 6.0])
    assert float(known.skipped) == 3 and known.in_row.tolist() == [3, 0]
    verdicts, _ = judged([*calm, 6.0], dataclasses.replace(SKIP, spike=0.0))
    assert all(verdicts)
    verdicts, _ = judged([*calm, 1.0])
    assert all(verdicts)  # downwards is no harm


def test_a_gradient_that_is_not_finite_is_bad_whatever_the_loss():
    good, _ = judge(initial_guard(SKIP), 0, jnp.float32(1.0), jnp.float32(np.inf), SKIP)
    assert not good


def test_a_guard_survives_json_to_the_last_bit():
    _, known = judged(np.random.default_rng(0).normal(5, 0.1, 20))
    back = from_plain(to_plain(known), initial_guard(SKIP))
    assert all(np.array_equal(a, b) for a, b in zip(known, back, strict=True))
    assert to_plain(None) is None
    assert from_plain(None, initial_guard(SKIP)).skipped == 0  # from before there was one
    assert from_plain(to_plain(known), None) is None  # not wanted any more
    older = from_plain(to_plain(known) | {"in_row": 3.0}, initial_guard(SKIP))
    assert older.in_row.tolist() == [0, 0] and older.skipped == known.skipped
    forgotten = forget_losses(known)
    assert np.all(np.asarray(forgotten.losses) == 0) and forgotten.skipped == known.skipped


def some_batch():
    mask = np.ones((4, 8), bool)
    tokens = np.random.default_rng(1).integers(0, 32, (4, 8), dtype=np.int32)
    return jax.tree.map(jnp.asarray, Batch(tokens, np.roll(tokens, -1, 1), mask, ~mask))


@pytest.fixture(scope="module")
def outcomes(memory_config):
    """One batch from three guards: nothing known, spikes in the sparse pass, in both."""
    step = make_train_step(memory_config, SKIP, TOTAL)
    low = [100.0, 0.0, 0.0]  # a hundred losses of nothing: whatever comes is a spike
    known = {"none": [[0.0] * 3] * 2, "sparse": [low, [0.0] * 3], "both": [low, low]}
    found = {}
    for name, losses in known.items():
        parameters = random_parameters(memory_config)
        before = Guard(jnp.float32(7), jnp.zeros(2), jnp.asarray(losses, jnp.float32))
        state = TrainState(jnp.int32(0), parameters, initial(SKIP, parameters), before)
        found[name] = jax.device_get(step(state, some_batch(), "two_step"))
    return found


def test_a_skipped_step_leaves_parameters_and_moments_to_the_bit(outcomes, memory_config):
    state, metrics = outcomes["both"]
    start = random_parameters(memory_config)
    for name, value in state.parameters.items():
        assert np.array_equal(value, start[name]), name
    adam = state.optimizer[1]
    assert adam.count == 0 and not any(m.any() for m in jax.tree.leaves((adam.mu, adam.nu)))
    assert state.step == 1  # the batch is over all the same
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (9, 2)


def test_each_pass_is_judged_on_its_own(outcomes, memory_config):
    state, metrics = outcomes["sparse"]
    assert state.optimizer[1].count == 1  # the dense pass alone
    # the good dense pass does not hide the sparse one: the host has to hear of it
    assert (metrics["skipped"], metrics["skipped_in_row"]) == (8, 1)
    assert metrics["loss"] != outcomes["none"][1]["loss"]  # found other parameters
    assert metrics["loss"] == outcomes["both"][1]["loss"]


def test_a_good_step_is_the_step_without_a_guard(outcomes, memory_config):
    step = make_train_step(memory_config, TRAIN, TOTAL)
    expected, metrics = step(fresh(memory_config), some_batch(), "two_step")
    found, guarded = outcomes["none"]
    assert set(guarded) - set(metrics) == {"skipped", "skipped_in_row"}
    for name, value in found.parameters.items():
        # the same arithmetic, fused otherwise: sums round otherwise, through AdamW's epsilon
        np.testing.assert_allclose(value, expected.parameters[name], rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("metrics", "train", "message"),
    [
        ({"loss": 1.0, "grad_norm": math.inf}, TrainConfig(), "grad_norm is inf at step 5"),
        (
            {"loss": 9.25, "skipped_in_row": 1.0},
            TrainConfig(spike=6.0),
            "loss spikes to 9.25 at step 5, more than train.spike=6 standard deviations",
        ),
        (
            {"loss": 2.5, "loss_sparse": 9.25, "skipped_in_row": 1.0},
            TrainConfig(spike=6.0),
            r"loss spikes to 2.5 \(in the sparse pass 9.25\) at step 5, more than train.spike=6",
        ),
        (
            {"loss": math.nan, "skipped_in_row": 3.0},
            TrainConfig(on_bad_step="skip", max_skipped=2),
            "3 optimizer steps in a row were skipped by step 5, more than train.max_skipped=2",
        ),
    ],
)
def test_the_host_ends_a_bad_run_in_one_line(metrics, train, message):
    with pytest.raises(TrainingStopped, match=message) as stopped:
        check_step(5, metrics, train)
    assert "\n" not in str(stopped.value) and "is kept" in str(stopped.value)


def test_the_host_lets_the_rest_pass():
    check_step(5, {"loss": 1.0, "gate_lengths": [math.inf]}, TrainConfig())
    check_step(5, {"loss": 1.0, "skipped_in_row": 0.0}, TrainConfig(spike=6.0))
    check_step(5, {"loss": math.nan, "skipped_in_row": 2.0}, SKIP)
