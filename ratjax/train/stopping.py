"""Ending early: a run that diverges, and a machine that is to be taken away."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ratjax.config.train import TrainConfig


class TrainingStopped(RuntimeError):
    """A run that cannot go on: a bad loss, a full disk. The message is one line."""


def check_step(step: int, metrics: Mapping[str, float | list[float]], train: TrainConfig) -> None:
    """Raises `TrainingStopped` where a step is bad and the policy is not to skip it.

    Args:
      step: from 1.
      metrics: of the step; `skipped_in_row` among them where the step is guarded.
      train: the policy.
    """
    kept = "the last good checkpoint is kept"
    if train.on_bad_step == "skip":
        if metrics["skipped_in_row"] > train.max_skipped:
            raise TrainingStopped(
                f"{metrics['skipped_in_row']:.0f} optimizer steps in a row were skipped by step "
                f"{step}, more than train.max_skipped={train.max_skipped}; {kept}; lower "
                "train.learning_rate, or look at the data"
            )
        return
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrainingStopped(
                f"{name} is {value} at step {step}; {kept}; lower train.learning_rate or "
                "train.clip_norm, or set train.on_bad_step=skip"
            )
    if metrics.get("skipped_in_row"):
        sparse = metrics.get("loss_sparse")
        also = "" if sparse is None else f" (in the sparse pass {sparse:.4g})"
        raise TrainingStopped(
            f"loss spikes to {metrics['loss']:.4g}{also} at step {step}, more than train.spike="
            f"{train.spike:g} standard deviations above its mean; {kept}; set "
            "train.on_bad_step=skip to go on without such steps"
        )


class Stop:
    """Whether the platform wants the run to end, and how much time is left then.

    Args:
      grace: seconds from the notice to the end.
    """

    def __init__(self, grace: float):
        self.grace = grace
        self.deadline: float | None = None

    def notice(self, *_) -> None:
        """The grace period begins, if it has not yet."""
        if self.deadline is None:
            self.deadline = time.monotonic() + self.grace

    def wanted(self, step: int) -> bool:
        """Whether to end after this step; the same in every process."""
        # JAX catches the signal, in whichever process it arrives, and agrees on a step with all.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.notice()
        return self.deadline is not None

    def leaves(self, seconds: float) -> bool:
        """Whether so much of the grace period is left; the same in every process."""
        left = math.inf if self.deadline is None else self.deadline - time.monotonic()
        enough = left >= seconds
        if jax.process_count() > 1:
            enough = bool(multihost_utils.broadcast_one_to_all(np.asarray(enough)))
        return enough


@contextlib.contextmanager
def stop_signal(grace: float) -> Iterator[Stop]:
    """A `Stop` that SIGTERM notices. While the context lasts, it ends no process by itself."""
    stop = Stop(grace)
    # Only the main thread may install handlers, and JAX has its own where it joins processes.
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.notice)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
