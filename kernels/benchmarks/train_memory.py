"""What the memory costs a training step: the same model with it and without it, on one GPU.

The peer is the attention model: same shape, same data, same kernels, one config field less. FLOPs
are each model's own, causal attention halved, nothing recomputed counted; the floor is those at the
data sheet's peak.
"""

import dataclasses

import jax
import models
import timing
from absl import app, flags
from steps import figures, prepare

from ratjax.train.flops import peak_flops

# name: (model, batch, length, recurrence)
CASES = {
    "study-32x1024": (models.STUDY, 32, 1024, "off"),
    "olmo2_1b-4x4096": (models.OLMO2_1B, 4, 4096, "off"),
}

_CASES = flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "What to time.")
_TARGET = flags.DEFINE_string("target", "train_memory.json", "Where the results go.")


def main(_):
    rows = []
    for case in _CASES.value:
        config, batch_size, length, recurrence = CASES[case]
        pair = config, dataclasses.replace(config, memory=None)
        found = []
        for one in pair:
            prepared = prepare(one, batch_size, length, recurrence)
            ms = timing.advancing_milliseconds(*prepared, calls=5, repeats=3)
            found.append((ms, figures(one, batch_size, length, recurrence, ms)))
            del prepared
        (ms, (floor, memory)), (plain_ms, (_, plain)) = found
        more = {**memory, **{f"peer_{name}": value for name, value in plain.items()}}
        more["overhead"] = ms / plain_ms - 1
        shape = (batch_size, length)
        rows.append(
            timing.row("train_memory", case, shape, ms, floor, "attention", plain_ms, **more)
        )
    timing.finish(rows, {"peak_flops": peak_flops(jax.devices()[0])}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
