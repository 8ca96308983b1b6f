"""What a model is trained on: folders of tokens, mixed by weight, in stages."""

import dataclasses
import math

from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError, check_choice, check_positive


@dataclasses.dataclass(frozen=True)
class DataStage:
    """A stretch of training with one batch shape and one mixture.

    Attributes:
      steps: batches in this stage.
      sequence_length: tokens of a sequence, T.
      batch_size: sequences of a batch, B.
      sources: pairs (folder, weight). A folder holds either rows or a token stream (see
        `ratjax.data`); records are drawn in proportion to the weights, each source's in a
        shuffled order that visits all of it before any of it again.
      recurrence: active recurrence learning in this stage. `two_step` (as published): a
        sparse pass over the batch with its own optimizer step, then a dense pass over the
        same batch with its own. `summed`: one optimizer step on the sum of both losses.
        `off`: the dense pass alone. `adapt`: the sparse pass alone, for a model that will be
        used with that pattern (RAT+'s adaptation). The same for both backbones of a pair.
    """

    steps: int
    sequence_length: int
    batch_size: int
    sources: tuple[tuple[str, float], ...]
    recurrence: str = "off"

    def __post_init__(self):
        for field in ("steps", "sequence_length", "batch_size"):
            check_positive(f"data.stages.{field}", getattr(self, field))
        check_choice(
            "data.stages.recurrence", self.recurrence, ("two_step", "summed", "off", "adapt")
        )
        if not self.sources:
            raise ConfigError("data.stages.sources", self.sources, "needs at least one folder")
        for folder, weight in self.sources:
            if not 0 < weight < math.inf:
                raise ConfigError(
                    "data.stages.sources", weight, f"the weight of {folder!r} must be above 0"
                )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The stages of a run, and what its folders were made with.

    Attributes:
      stages: run in order; the last one runs on while `train.steps` lasts.
      tokenizer: `tokenizer.json` of the model; copied beside its checkpoints.
      prepare: a function, as "module:name", that `launch` calls with the experiment before
        training, to make the tokenizer and the folders where they are missing. Empty: none.
      prefetch: batches made ahead, by one background thread (docs/data.md has its speed).
    """

    stages: tuple[DataStage, ...] = ()
    tokenizer: str = ""
    prepare: str = ""
    prefetch: int = 2

    def __post_init__(self):
        check_positive("data.prefetch", self.prefetch)
        if self.prepare and self.prepare.count(":") != 1:
            raise ConfigError("data.prepare", self.prepare, 'must read "module:function"')


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps `start` to `stop` (excluded) of a run, all of one stage."""

    start: int
    stop: int
    index: int
    stage: DataStage


def schedule(train: TrainConfig, data: DataConfig) -> tuple[Span, ...]:
    """Which stage each step of a run belongs to.

    Returns:
      Spans that cover 0..steps without gaps; the last one's `stop` is the run's length.

    Raises:
      ConfigError: no stages, or a batch that the microbatches do not divide.
    """
    if not data.stages:
        raise ConfigError("data.stages", data.stages, "training needs at least one stage")
    for stage in data.stages:
        if stage.batch_size % train.microbatches:
            raise ConfigError(
                "train.microbatches",
                train.microbatches,
                f"must divide data.stages.batch_size={stage.batch_size}",
            )
    total = train.steps or sum(stage.steps for stage in data.stages)
    spans, start = [], 0
    for index, stage in enumerate(data.stages):
        last = index == len(data.stages) - 1
        stop = total if last else min(start + stage.steps, total)
        if start < stop:
            spans.append(Span(start, stop, index, stage))
        start = stop
    return tuple(spans)
