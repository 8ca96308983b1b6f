"""What a run reports: metrics.jsonl, TensorBoard, and a progress bar."""

import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from ratjax.config.data import Span
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.files import write_file
from ratjax.train.board import Board
from ratjax.train.flops import FORMULA, peak_flops, step_flops
from ratjax.train.gates import DEFINITION
from ratjax.train.loss import logit_positions
from ratjax.train.step import passes

METRICS = "metrics.jsonl"

Values = Mapping[str, float | list[float]]


def fetch(metrics: Mapping[str, jax.Array | float]) -> dict[str, float | list[float]]:
    """A step's metrics as plain numbers; waits for the step."""
    return {name: np.asarray(value).tolist() for name, value in jax.device_get(metrics).items()}


def drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Removes the lines of `metrics.jsonl` past `step`, and one that a crash left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
    write_file(path, "".join(kept))


def is_logged(step: int, total: int, train: TrainConfig) -> bool:
    """Whether a step's metrics are to be logged; the same in every process."""
    return step % train.log_every == 0 or step == total


class MeanLoss:
    """The mean of the finite losses since it was last taken."""

    def __init__(self):
        self.losses: list[float] = []

    def add(self, loss: float) -> None:
        if math.isfinite(loss):
            self.losses.append(loss)

    def take(self) -> float | None:
        """The mean, None of nothing; begins anew."""
        losses, self.losses = self.losses, []
        return math.fsum(losses) / len(losses) if losses else None


class Silent:
    """What the other processes of a run record: nothing."""

    def record(self, *_) -> None:
        pass

    def close(self) -> None:
        pass


def open_recorder(*arguments) -> "Recorder | Silent":
    """A `Recorder` in the first process of a run."""
    return Recorder(*arguments) if jax.process_index() == 0 else Silent()


class Recorder:
    """Writes the metrics of the steps that are to be logged.

    `tokens_per_s` and `mfu` are over the steps since the line before, without the time that
    measuring a held-out loss took, and null where those include the compilation of the step.
    `data_seconds` of that time went by in waiting for a batch, `data_share` in relation to all.
    A device that still had work to do did not starve then: they are upper bounds.

    A line whose numbers are not all finite (those of a step that a guard skipped) waits for the
    next one that has them.

    Args:
      folder: where to write.
      config: the model, for its FLOPs.
      train: `log_every`, and the patterns of the sparse pass.
      start: the step that the run starts from; later lines of an earlier run are dropped.
      total: the step that it ends with.
      devices: how many it runs on.
      seconds: spent in each phase so far (`Watch.seconds`).
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: ModelConfig,
        train: TrainConfig,
        start: int,
        total: int,
        devices: int = 1,
        seconds: Mapping[str, float] | None = None,
    ):
        self.config, self.train, self.total = config, train, total
        self.seconds = seconds if seconds is not None else {}
        path = folder / METRICS
        drop_lines_after(path, start)
        self.file = path.open("a", encoding="utf-8")
        self.board = Board(folder / "tensorboard", start + 1)
        self.board.text("mfu", FORMULA)
        if config.memory is not None and train.gate_lengths:
            self.board.text("gate_lengths", DEFINITION)
        self.bar = tqdm.tqdm(
            total=total, initial=start, unit="step", disable=not sys.stderr.isatty()
        )
        peak = peak_flops(jax.devices()[0])
        self.peak = None if peak is None else peak * devices
        self.span: Span | None = None
        self.late = False
        self.began = self.waited = self.aside = self.tokens = self.flops = 0
        self.costs: dict[int, float] = {}

    def record(
        self, step: int, span: Span, metrics: Values, most_targets: int | None = None
    ) -> None:
        """Takes note of a finished step (from 1), and logs it if it is to be logged.

        `most_targets` is `loss_sums`'s, on which the step's FLOPs depend.
        """
        self.tokens += span.stage.tokens_per_step
        self.flops += self._step_flops(span, most_targets)
        wanted = self.late or is_logged(step, self.total, self.train) or "loss_held_out" in metrics
        self.late = wanted and not all(map(_finite, metrics.values()))
        if wanted and not self.late:
            self._log(step, span, metrics)
            self._restart(span)
        elif span is not self.span:
            self._restart(span)
        self.bar.update(1)

    def _restart(self, span: Span) -> None:
        self.span = span
        self.began, self.tokens, self.flops = time.perf_counter(), 0, 0.0
        self.waited, self.aside = self._spent()

    def _spent(self) -> tuple[float, float]:
        return self.seconds.get("data", 0.0), self.seconds.get("held-out", 0.0)

    def _step_flops(self, span: Span, most_targets: int | None) -> float:
        if span.index not in self.costs:
            stage = span.stage
            patterns = [p for step in passes(self.train, stage.recurrence) for p in step.values()]
            positions = logit_positions(stage.sequence_length, most_targets)
            self.costs[span.index] = step_flops(
                self.config, patterns, stage.sequence_length, stage.batch_size, positions
            )
        return self.costs[span.index]

    def _log(self, step: int, span: Span, metrics: Values) -> None:
        line = {"step": step, "loss": metrics["loss"], **metrics}
        line |= dict.fromkeys(("tokens_per_s", "mfu", "data_seconds", "data_share"))
        if span is self.span:  # else its first step has been compiled: no time to speak of
            waited, aside = self._spent()
            waited -= self.waited
            seconds = time.perf_counter() - self.began - (aside - self.aside)
            line["tokens_per_s"] = self.tokens / seconds
            line["mfu"] = self.flops / seconds / self.peak if self.peak else None
            line["data_seconds"], line["data_share"] = waited, waited / seconds
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.board.scalars(step, dict(_curves(line)))
        self.bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()


def _finite(value: float | list[float]) -> bool:
    return all(map(math.isfinite, value)) if isinstance(value, list) else math.isfinite(value)


def _curves(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """TensorBoard's names and numbers for a line; a list has one curve for each item."""
    for name, value in line.items():
        if isinstance(value, list):
            yield from ((f"{name}/layer_{n:02}", item) for n, item in enumerate(value))
        elif value is not None and name != "step":
            yield f"train/{name}", value
