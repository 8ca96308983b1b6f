"""Times whole training steps with the CUDA kernels and without them, on one GPU.

The peer is the same step with every operation in plain JAX (`xla`); dense attention is cuDNN's in
both. Steps run on random tokens with a full loss, float32 parameters and bfloat16 compute.
"""

import jax
import models
import timing
from absl import app, flags
from steps import figures, prepare

from ratjax.train.flops import peak_flops
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
        floor, more = figures(config, batch_size, length, recurrence, ours)
        shape = (batch_size, length)
        rows.append(timing.row("train_step", case, shape, ours, floor, "xla", plain, **more))
    timing.finish(rows, {"peak_flops": peak}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
