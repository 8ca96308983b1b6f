"""The training loop. It reads from top to bottom; everything it calls is one file away."""

import contextlib
import math
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ratjax.config.data import DataConfig, schedule
from ratjax.config.model import ModelConfig
from ratjax.config.overrides import to_json
from ratjax.config.train import TrainConfig
from ratjax.data import Batches, iterate
from ratjax.errors import ConfigError
from ratjax.model.checkpoint import write_card
from ratjax.train.checkpoint import Checkpoints, restore
from ratjax.train.metrics import open_recorder
from ratjax.train.state import abstract_state, fresh_state, place_batch
from ratjax.train.step import make_train_step


class TrainingStopped(RuntimeError):
    """The loss or the gradient is not finite any more. The message is one line."""


def train(
    config: ModelConfig,
    train: TrainConfig,
    data: DataConfig,
    workdir: pathlib.Path,
    provenance: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    compiled: Callable | None = None,
) -> bool:
    """Trains a model, or goes on training it from the newest checkpoint in `workdir`.

    Everything that determines the losses (parameters, optimizer state, data order) is a
    function of the arguments and the step, so a run that was stopped gives the losses of one
    that was not. SIGTERM ends the run after the step in flight, with a checkpoint.

    Args:
      config: the model.
      train: optimizer, schedule, logging.
      data: stages and sources; the tokenizer.
      workdir: made into a model folder (see `ratjax.model.checkpoint`), with `metrics.jsonl`
        and `tensorboard/` beside the checkpoints.
      provenance: kept in `model.json`.
      mesh: the devices to spread the run over, those of other processes too; every process
        calls this function. A run may be resumed on another mesh. None: the first device.
      compiled: the training step, where it was compiled before (`ratjax.ahead.saved_step`).

    Returns:
      Whether all steps are done (a signal ends a run early).

    Raises:
      InputError: anything the user can mend: sources, tokenizer, a run that cannot be resumed.
      TrainingStopped: a loss that is not finite. The last good checkpoint stays.
    """
    if config.memory is not None and config.memory.init == "identity":
        raise ConfigError("memory.init", "identity", "such a gate cannot be trained")
    spans = schedule(train, data)
    total = spans[-1].stop
    batches = Batches(spans, train.seed, config.vocab_size)
    signature = {
        "model": to_json(config),
        "train": {k: v for k, v in to_json(train).items() if k != "seed"},
        "seed": train.seed,
        "data": batches.signature(),
    }

    restored = restore(workdir, abstract_state(config, train, mesh), signature)
    if jax.process_index() == 0:
        write_card(workdir, config, data.tokenizer or None, provenance or {})
    if restored:
        state, position = restored
        print(f"resuming from step {int(state.step)} of {total}", flush=True)
    else:
        state, position = fresh_state(config, train, mesh), {"next_index": 0}
    start = int(state.step)
    if start >= total:
        return True

    train_step = compiled or make_train_step(config, train, total, mesh)
    in_flight = None  # the step before: its metrics are fetched while the next one runs

    def finish(pending):
        if pending is not None:
            step, span, metrics, most_targets = pending
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            check_finite(step, metrics, workdir)
            recorder.record(step, span, metrics, most_targets)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signal())  # until the last checkpoint is on disk
        closing = lambda resource: stack.enter_context(contextlib.closing(resource))  # noqa: E731
        devices = 1 if mesh is None else mesh.size
        recorder = closing(open_recorder(workdir, config, train, start, total, devices))
        checkpoints = closing(Checkpoints(workdir, train.keep))
        iterator = closing(iterate(batches, position, data.prefetch))
        for span in spans:
            finish(in_flight)  # a new batch shape compiles: not at the cost of the step before
            in_flight = None
            recurrence, most_targets = span.stage.recurrence, batches.most_targets(span)
            for step in range(max(span.start, start) + 1, span.stop + 1):
                batch = place_batch(next(iterator), mesh)
                state, metrics = train_step(state, batch, recurrence, most_targets)
                finish(in_flight)
                in_flight = step, span, metrics, most_targets
                checkpoints.settle()
                ends = step == total or stop(step)
                if ends or step % train.checkpoint_every == 0:
                    finish(in_flight)  # before saving, so that no checkpoint follows a bad step
                    in_flight = None
                    checkpoints.save(state, iterator.get_state(), signature)
                if ends:
                    return step == total
    raise AssertionError("unreachable: the last step returns")


def check_finite(step: int, metrics: Mapping[str, float], workdir: pathlib.Path) -> None:
    """Raises `TrainingStopped` where a metric is infinite or not a number."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingStopped(
                f"{name} is {value} at step {step}; the last good checkpoint is kept in {workdir}; "
                "lower train.learning_rate or train.clip_norm"
            )


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Whether SIGTERM has come: a function of the step, which is the same in every process.

    While the context lasts, the signal ends no process by itself.
    """
    if jax.process_count() > 1:
        # JAX catches the signal, in whichever process it arrives, and agrees on a step with all.
        yield multihost_utils.reached_preemption_sync_point
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # only the main thread may install handlers
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield lambda step: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
