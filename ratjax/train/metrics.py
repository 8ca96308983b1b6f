"""What a run reports: metrics.jsonl, TensorBoard, and a progress bar."""

import json
import pathlib
import sys
import time

import jax
import tqdm

from ratjax.config.data import Span
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.files import write_file
from ratjax.train.board import Board
from ratjax.train.flops import FORMULA, peak_flops, step_flops
from ratjax.train.loss import logit_positions
from ratjax.train.step import passes

METRICS = "metrics.jsonl"


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

    `tokens_per_s` and `mfu` are over the steps since the line before, and null where those
    include the compilation of the step.

    Args:
      workdir: the run's folder.
      config: the model, for its FLOPs.
      train: `log_every`, and the patterns of the sparse pass.
      start: the step that the run starts from; later lines of an earlier run are dropped.
      total: the step that it ends with.
      devices: how many it runs on.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: ModelConfig,
        train: TrainConfig,
        start: int,
        total: int,
        devices: int = 1,
    ):
        self.config, self.train, self.total = config, train, total
        path = workdir / METRICS
        drop_lines_after(path, start)
        self.file = path.open("a", encoding="utf-8")
        self.board = Board(workdir / "tensorboard", start + 1)
        self.board.text("mfu", FORMULA)
        self.bar = tqdm.tqdm(
            total=total, initial=start, unit="step", disable=not sys.stderr.isatty()
        )
        peak = peak_flops(jax.devices()[0])
        self.peak = None if peak is None else peak * devices
        self.span: Span | None = None
        self.began = self.tokens = self.flops = 0
        self.costs: dict[int, float] = {}

    def record(
        self, step: int, span: Span, metrics: dict[str, float], most_targets: int | None = None
    ) -> None:
        """Takes note of a finished step (from 1), and logs it if it is to be logged.

        `most_targets` is `loss_sums`'s, on which the step's FLOPs depend.
        """
        self.tokens += span.stage.tokens_per_step
        self.flops += self._step_flops(span, most_targets)
        if step % self.train.log_every == 0 or step == self.total:
            self._log(step, span, metrics)
            self._restart(span)
        elif span is not self.span:
            self._restart(span)
        self.bar.update(1)

    def _restart(self, span: Span) -> None:
        self.span = span
        self.began, self.tokens, self.flops = time.perf_counter(), 0, 0.0

    def _step_flops(self, span: Span, most_targets: int | None) -> float:
        if span.index not in self.costs:
            stage = span.stage
            patterns = [p for step in passes(self.train, stage.recurrence) for p in step.values()]
            positions = logit_positions(stage.sequence_length, most_targets)
            self.costs[span.index] = step_flops(
                self.config, patterns, stage.sequence_length, stage.batch_size, positions
            )
        return self.costs[span.index]

    def _log(self, step: int, span: Span, metrics: dict[str, float]) -> None:
        # A new span's first step compiles: its time says nothing about speed.
        seconds = time.perf_counter() - self.began if span is self.span else None
        line = {"step": step, "loss": metrics["loss"], **metrics}
        line["tokens_per_s"] = self.tokens / seconds if seconds else None
        line["mfu"] = self.flops / seconds / self.peak if seconds and self.peak else None
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        curves = {f"train/{n}": v for n, v in line.items() if n != "step" and v is not None}
        self.board.scalars(step, curves)
        self.bar.set_postfix_str(f"loss {metrics['loss']:.4f}", refresh=False)

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()
