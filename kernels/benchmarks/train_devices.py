"""Training steps on one GPU and on all GPUs of a host, parameters and optimizer shared out (fsdp).

Each device works on as many sequences as one device alone does, so that the peer, one device, takes
as long if exchanging parameters and gradients costs nothing: `speedup` is the scaling's efficiency.
A model whose state one device cannot hold has no peer; its row says what throughput and share of
the peak it reaches.
"""

import dataclasses
from collections.abc import Iterator

import jax
import models
import numpy as np
import timing
from absl import app, flags
from steps import figures

from ratjax.config.mesh import MeshConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batch
from ratjax.sharding import make_mesh
from ratjax.train.state import fresh_state, place_batch
from ratjax.train.step import make_train_step

LENGTH = 4096

# name: (model, sequences a device, microbatches, recurrence, whether one device can hold it)
CASES = {
    "olmo2_1b": (models.OLMO2_1B, 4, 1, "off", True),
    "olmo2_1b-attention": (dataclasses.replace(models.OLMO2_1B, memory=None), 4, 1, "off", True),
    "olmo2_7b": (models.OLMO2_7B, 2, 1, "off", False),
    "olmo2_7b-attention": (dataclasses.replace(models.OLMO2_7B, memory=None), 2, 1, "off", False),
    "olmo2_7b-two_step": (models.OLMO2_7B, 1, 1, "two_step", False),
}

_CASES = flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "What to time.")
_LAYERS = flags.DEFINE_integer("layers", 0, "Layers, in place of the model's own (0: those).")
_UNROLL = flags.DEFINE_integer("unroll", 0, "Layers a turn of the loop (0: the model's own).")
_BATCH = flags.DEFINE_integer("batch", 0, "Sequences a device (0: the case's own).")
_REMAT = flags.DEFINE_string("remat", "", "What is recomputed (none given: the model's own).")
_TARGET = flags.DEFINE_string("target", "train_devices.json", "Where the results go.")


def milliseconds(config, per_device, microbatches, recurrence, devices) -> float:
    """Of one step on that many devices."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices)) if devices > 1 else None
    train = TrainConfig(steps=1000, warmup=0.1, microbatches=microbatches)
    size = (per_device * devices, LENGTH)
    rng = np.random.default_rng(0)
    tokens = rng.integers(config.vocab_size, size=(size[0], LENGTH + 1), dtype=np.int32)
    every = np.ones(size, bool)
    batch = Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), every, ~every)
    batch = place_batch(batch, mesh) if mesh else jax.device_put(batch)
    step = make_train_step(config, train, train.steps, mesh)
    ms = timing.advancing_milliseconds(
        lambda state: step(state, batch, recurrence)[0],
        lambda: fresh_state(config, train, mesh),
        calls=4,
        repeats=3,
    )
    make_train_step.cache_clear()
    jax.clear_caches()
    return ms


def measure() -> Iterator[dict]:
    """The rows of the cases asked for."""
    devices = jax.device_count()
    for case in _CASES.value:
        config, per_device, microbatches, recurrence, alone = CASES[case]
        changes = {"num_layers": _LAYERS.value, "unroll": _UNROLL.value, "remat": _REMAT.value}
        config = dataclasses.replace(config, **{k: v for k, v in changes.items() if v})
        per_device = _BATCH.value or per_device
        how = config, per_device, microbatches, recurrence
        ms = milliseconds(*how, devices)
        peer = ("one device", milliseconds(*how, 1)) if alone else (None, None)
        floor, of_one = figures(config, per_device, LENGTH, recurrence, ms)
        more = {
            "devices": devices,
            "tokens_per_s": devices * of_one["tokens_per_s"],
            "tokens_per_s_per_device": of_one["tokens_per_s"],
            "mfu": of_one["mfu"],
            "microbatches": microbatches,
            "remat": config.remat,
            "unroll": config.unroll,
        }
        shape = (per_device * devices, LENGTH)
        yield timing.row("train_devices", case, shape, ms, floor, *peer, **more)


def main(_):
    rows = []
    try:
        for row in measure():
            rows.append(row)
            print(row, flush=True)
    finally:  # what was measured stays, whatever stops the rest
        timing.finish(rows, {}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
