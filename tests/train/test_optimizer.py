import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ratjax.config.train import TrainConfig
from ratjax.train.optimizer import Rates, descend, initial, optimizer, rates


def test_schedule_values():
    """Method of the released recipes: (t + 1) / w * peak, then half a cosine to the end."""
    train = TrainConfig(
        learning_rate=6e-5, memory_learning_rate=6e-4, end_learning_rate=1e-6, warmup=0.02
    )
    total = 3178  # the paper's continued pretraining, whose warmup is 63 steps
    for step in (0, 1, 31, 62, 63, 64, 1000, 3177):
        found = rates(train, total, jnp.int32(step))
        for peak, value in zip((6e-5, 6e-4), found, strict=True):
            if step < 63:
                expected = (step + 1) / 63 * peak
            else:
                progress = (step - 63) / (total - 63)
                expected = 1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * progress)) / 2
            # float32 cosine: near its end it is a difference of numbers close to one
            assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-6 * peak)


def test_schedule_reaches_the_peak_and_the_end():
    train = TrainConfig(learning_rate=1e-3, end_learning_rate=1e-5, warmup=0.1)
    found = [float(rates(train, 50, jnp.int32(step)).learning_rate) for step in range(51)]
    assert found[4] == pytest.approx(1e-3) and found[5] == pytest.approx(1e-3)
    assert found[50] == pytest.approx(1e-5)
    assert np.all(np.diff(found[:5]) > 0) and np.all(np.diff(found[5:]) < 0)


def test_without_warmup_the_first_step_has_the_peak():
    train = TrainConfig(learning_rate=1e-3, warmup=0.0)
    assert float(rates(train, 10, jnp.int32(0)).learning_rate) == pytest.approx(1e-3)


def test_memory_follows_its_own_rate_and_defaults_to_the_other():
    assert (
        rates(TrainConfig(), 10, jnp.int32(0)).memory_learning_rate
        == rates(TrainConfig(), 10, jnp.int32(0)).learning_rate
    )
    parameters = {
        "blocks/attention/memory/weight": jnp.ones(2),
        "blocks/attention/memory/bias": jnp.ones(2),
        "blocks/attention/w_q": jnp.ones(2),
        "memory_like/weight": jnp.ones(2),
    }
    moved = descend(parameters, parameters, Rates(jnp.float32(0.25), jnp.float32(0.5)))
    assert {name: float(value[0]) for name, value in moved.items()} == {
        "blocks/attention/memory/weight": 0.5,
        "blocks/attention/memory/bias": 0.5,
        "blocks/attention/w_q": 0.75,
        "memory_like/weight": 0.75,
    }


def test_steps_equal_adamw_on_every_parameter():
    """optax.adamw with the same constants, after clipping; norms and embeddings decay too."""
    train = TrainConfig(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.5)
    rng = np.random.default_rng(0)
    names = ("norm/weight", "embedding", "blocks/mlp/w_up")
    parameters = {name: jnp.asarray(rng.normal(size=3), jnp.float32) for name in names}
    reference = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(1e-2, 0.9, 0.95, 1e-8, weight_decay=0.1)
    )
    theirs, their_state = parameters, reference.init(parameters)
    ours, our_state = parameters, initial(train, parameters)
    for _ in range(3):
        gradient = {name: jnp.asarray(rng.normal(size=3), jnp.float32) for name in names}
        update, their_state = reference.update(gradient, their_state, theirs)
        theirs = optax.apply_updates(theirs, update)
        direction, our_state = optimizer(train).update(gradient, our_state, ours)
        ours = descend(ours, direction, Rates(jnp.float32(1e-2), jnp.float32(1e-2)))
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    train = TrainConfig(clip_norm=1.0)
    clip = optax.clip_by_global_norm(train.clip_norm)
    gradient = {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}
    clipped, _ = clip.update(gradient, clip.init(gradient))
    ours, state = optimizer(train).update(gradient, initial(train, gradient), gradient)
    # The first moment is (1 - beta1) times the clipped gradient.
    np.testing.assert_allclose(state[1].mu["a"], 0.1 * clipped["a"], rtol=1e-6)
    np.testing.assert_allclose(state[1].mu["b"], 0.1 * 0.8, rtol=1e-6)
    assert set(ours) == {"a", "b"}
