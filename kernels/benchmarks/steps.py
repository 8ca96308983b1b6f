"""What the benchmarks of training steps share: a compiled step with its start, and its figures."""

from collections.abc import Callable

import jax
import numpy as np

from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.train.flops import peak_flops, step_flops
from ratjax.train.state import abstract_state, fresh_state
from ratjax.train.step import make_train_step, passes


def prepare(
    config: ModelConfig, batch_size: int, length: int, recurrence: str
) -> tuple[Callable, Callable]:
    """The compiled step on one batch of random tokens, and what makes a state to start from."""
    train = TrainConfig(steps=1000, warmup=0.1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(config.vocab_size, size=(batch_size, length + 1), dtype=np.int32)
    every = np.ones((batch_size, length), bool)
    batch = jax.device_put(Batch(tokens[:, :-1], tokens[:, 1:], every, ~every))

    make_train_step.cache_clear()
    jax.clear_caches()
    step = make_train_step(config, train, train.steps)
    compiled = step.lower(abstract_state(config, train), batch, recurrence).compile()
    return lambda state: compiled(state, batch)[0], lambda: fresh_state(config, train)


def figures(
    config: ModelConfig, batch_size: int, length: int, recurrence: str, ms: float
) -> tuple[float, dict[str, float]]:
    """(least milliseconds at the device's peak, throughput and share of the peak at `ms`).

    FLOPs are the model's: causal attention halved, nothing that is recomputed counted.
    """
    patterns = [p for group in passes(TrainConfig(), recurrence) for p in group.values()]
    floor = 1e3 * step_flops(config, patterns, length, batch_size) / peak_flops(jax.devices()[0])
    return floor, {"tokens_per_s": 1e3 * batch_size * length / ms, "mfu": floor / ms}
