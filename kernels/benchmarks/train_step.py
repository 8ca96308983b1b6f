"""Times whole training steps with the CUDA kernels and without them, on one GPU.

The peer is the same step with every operation in plain JAX (`xla`); dense attention is cuDNN's in
both. Steps run on random tokens with a full loss, float32 parameters and bfloat16 compute.
"""

import jax
import jax.numpy as jnp
import models
import numpy as np
import timing
from absl import app, flags

from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.model.parameters import initial_parameters
from ratjax.train.flops import peak_flops, step_flops
from ratjax.train.optimizer import optimizer
from ratjax.train.step import TrainState, make_train_step, passes
from ratjax_kernels import prefer

# name: (model, batch, length, recurrence)
CASES = {
    "study-32x1024": (models.STUDY, 32, 1024, "off"),
    "study-32x1024-two_step": (models.STUDY, 32, 1024, "two_step"),
    "olmo2_1b-4x4096": (models.OLMO2_1B, 4, 4096, "off"),
    "olmo2_1b-4x4096-two_step": (models.OLMO2_1B, 4, 4096, "two_step"),
}

_CASES = flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "What to time.")
_TARGET = flags.DEFINE_string("target", "train_step.json", "Where the results go.")


def prepare(config, batch_size, length, recurrence):
    """The compiled step, and what makes a state to start from."""
    train = TrainConfig(steps=1000, warmup=0.1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(config.vocab_size, size=(batch_size, length + 1), dtype=np.int32)
    every = np.ones((batch_size, length), bool)
    batch = jax.device_put(Batch(tokens[:, :-1], tokens[:, 1:], every, ~every))

    @jax.jit
    def start():
        parameters = initial_parameters(config)(jax.random.key(0))
        return TrainState(jnp.int32(0), parameters, optimizer(train).init(parameters))

    make_train_step.cache_clear()
    jax.clear_caches()
    step = make_train_step(config, train, train.steps)
    compiled = step.lower(jax.eval_shape(start), batch, recurrence).compile()
    return lambda state: compiled(state, batch)[0], start


def main(_):
    rows = []
    peak = peak_flops(jax.devices()[0])
    for case in _CASES.value:
        config, batch_size, length, recurrence = CASES[case]
        with prefer("cudnn", "xla"):
            without = prepare(config, batch_size, length, recurrence)
        with_kernels = prepare(config, batch_size, length, recurrence)
        ours, plain = (
            timing.advancing_milliseconds(*prepared, calls=5, repeats=3)
            for prepared in (with_kernels, without)
        )
        patterns = [p for group in passes(TrainConfig(), recurrence) for p in group.values()]
        flops = step_flops(config, patterns, length, batch_size)
        shape = (batch_size, length)
        more = {
            "tokens_per_s": 1e3 * batch_size * length / ours,
            "mfu": flops / (1e-3 * ours * peak),
        }
        floor = 1e3 * flops / peak
        rows.append(timing.row("train_step", case, shape, ours, floor, "xla", plain, **more))
    timing.finish(rows, {"peak_flops": peak}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
