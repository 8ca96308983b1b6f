"""The training loop. It reads from top to bottom; everything it calls is one file away."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ratjax.config.data import DataConfig, schedule
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batches, iterate
from ratjax.errors import ConfigError
from ratjax.files import Folder, alone_in, is_remote
from ratjax.model.checkpoint import write_card
from ratjax.train.checkpoint import Checkpoints, restore, signature_of
from ratjax.train.failures import storage_errors
from ratjax.train.gates import make_gate_lengths
from ratjax.train.guard import forget_losses
from ratjax.train.held_out import HeldOut
from ratjax.train.logs import Logs
from ratjax.train.metrics import METRICS, MeanLoss, fetch, is_logged, open_recorder
from ratjax.train.state import abstract_state, fresh_state, place_batch
from ratjax.train.step import make_train_step
from ratjax.train.stopping import check_step, stop_signal
from ratjax.train.trace import Trace
from ratjax.train.watch import Watch


def train(
    config: ModelConfig,
    train: TrainConfig,
    data: DataConfig,
    workdir: Folder,
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
      train: optimizer, schedule, guards, checkpoints, logging.
      data: stages and sources; the tokenizer.
      workdir: made into a model folder (see `ratjax.model.checkpoint`), with `metrics.jsonl`
        and `tensorboard/` beside the checkpoints. May be in a bucket.
      provenance: kept in `model.json` and in each checkpoint.
      mesh: the devices to spread the run over, those of other processes too; every process
        calls this function. A run may be resumed on another mesh. None: the first device.
      compiled: the training step, where it was compiled before (`ratjax.ahead.saved_step`).

    Returns:
      Whether all steps are done (a signal ends a run early).

    Raises:
      InputError: anything the user can mend: sources, tokenizer, a run that cannot be resumed,
        another process that trains into `workdir`.
      TrainingStopped: a bad loss, or storage that cannot be written to. The last good checkpoint
        stays.
    """
    if config.memory is not None and config.memory.init == "identity":
        raise ConfigError("memory.init", "identity", "such a gate cannot be trained")
    spans = schedule(train, data)
    total = spans[-1].stop

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        closing = lambda resource: enter(contextlib.closing(resource))  # noqa: E731
        watch = enter(Watch(train.watchdog, train.watchdog_exit))
        enter(storage_errors(workdir, watch))
        batches = Batches(spans, train.seed, config.vocab_size)
        signature = signature_of(config, train, batches)
        held_out = HeldOut(config, train, spans, mesh) if train.held_out else None
        # A new folder is made once all input is found good; buckets know no locks.
        fresh = not workdir.exists()
        locks = jax.process_index() == 0 and not is_remote(workdir)
        if locks and not fresh:
            enter(alone_in(workdir))
        watch.enter("restore")
        restored = restore(workdir, abstract_state(config, train, mesh), signature)
        watch.enter("start")
        if jax.process_index() == 0:
            write_card(workdir, config, data.tokenizer or None, provenance or {})
        if locks and fresh:
            enter(alone_in(workdir))
        if restored:
            state, position = restored
            print(f"resuming from step {int(state.step)} of {total}", flush=True)
        else:
            state, position = fresh_state(config, train, mesh), {"next_index": 0}
        start = int(state.step)
        if start >= total:
            return True

        train_step = compiled or make_train_step(config, train, total, mesh)
        measures_gates = config.memory is not None and train.gate_lengths
        gate_lengths = make_gate_lengths(config, mesh) if measures_gates else None
        mean_loss = MeanLoss()  # since the last checkpoint
        in_flight = None  # the step before: its metrics are fetched while the next one runs

        def finish():
            nonlocal in_flight
            if in_flight is not None:
                (step, span, metrics, most_targets), in_flight = in_flight, None
                metrics = fetch(metrics)
                check_step(step, metrics, train)
                metrics.pop("skipped_in_row", None)
                mean_loss.add(metrics["loss"])
                recorder.record(step, span, metrics, most_targets)
                logs.copy()

        stop = enter(stop_signal(train.grace_seconds))  # until the last checkpoint is on disk
        # Another process's copy of the metrics would be an old one.
        first = jax.process_index() == 0
        logs = closing(Logs(workdir, (METRICS,) if first else ()))
        devices = 1 if mesh is None else mesh.size
        recorder = closing(
            open_recorder(logs.folder, config, train, start, total, devices, watch.seconds)
        )
        trace = closing(Trace(logs.folder / "profile", train.profiled_steps))
        checkpoints = closing(Checkpoints(workdir, train, provenance))
        iterator = closing(iterate(batches, position, data.prefetch))
        for span in spans:
            finish()  # a new batch shape compiles: not at the cost of the step before
            recurrence, most_targets = span.stage.recurrence, batches.most_targets(span)
            phase = "compile"
            for step in range(max(span.start, start) + 1, span.stop + 1):
                watch.enter("data", step)
                batch = place_batch(next(iterator), mesh)
                if step == span.start + 1 and state.guard is not None:
                    state = state._replace(guard=forget_losses(state.guard))

                watch.enter(phase)
                trace.before(step)
                gates = {}
                if gate_lengths and is_logged(step, total, train):
                    gates["gate_lengths"] = gate_lengths(state.parameters, batch)
                state, metrics = train_step(state, batch, recurrence, most_targets)
                watch.enter("step")
                finish()
                in_flight = step, span, metrics | gates, most_targets
                trace.after(step, metrics)
                checkpoints.settle()

                stopping = stop.wanted(step)
                ends = step == total or stopping
                saves = ends or step % train.checkpoint_every == 0
                every = train.held_out_every
                if held_out and not stopping and (saves or (every and step % every == 0)):
                    jax.block_until_ready(metrics)
                    watch.enter("held-out")
                    metrics["loss_held_out"] = held_out.loss(state.parameters, span)
                    in_flight = step, span, metrics | gates, most_targets
                    watch.enter("step")
                if saves:
                    finish()  # before saving, so that no checkpoint follows a bad step
                    watch.enter("save")
                    checkpoints.finish()
                    if stopping and not stop.leaves(checkpoints.last_seconds):
                        print(
                            f"a checkpoint takes {checkpoints.last_seconds:.0f} s, more than is "
                            "left of train.grace_seconds: the one before stays",
                            flush=True,
                        )
                        return False
                    loss = metrics.get("loss_held_out") if held_out else mean_loss.take()
                    checkpoints.save(state, iterator.get_state(), signature, loss)
                if ends:
                    checkpoints.finish()
                    return step == total
                phase = "step"
    raise AssertionError("unreachable: the last step returns")
