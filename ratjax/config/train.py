"""How a model is trained: the optimizer, its schedule, and what a run writes."""

import dataclasses

from ratjax.errors import ConfigError, check_positive


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """AdamW on a cosine schedule, with a second learning rate for the memory.

    The defaults are the paper's continued pretraining of OLMo2-7B, and where the paper is
    silent (betas, clipping, final learning rate) the released RAT+ recipes.

    Attributes:
      steps: batches to train on. 0: the sum of the data stages' steps. Beyond that sum the
        last stage runs on. The learning-rate schedule spans exactly these steps.
      learning_rate: peak, for every parameter but the memory's.
      memory_learning_rate: peak, for the parameters of the memory. Unset: `learning_rate`.
      end_learning_rate: where the cosine ends, for both groups.
      warmup: fraction of the steps over which the learning rate rises linearly.
      weight_decay: decoupled, on all parameters: norms and embeddings too, as published.
      beta1: decay of AdamW's first moment.
      beta2: decay of AdamW's second moment.
      epsilon: added to the root of AdamW's second moment.
      clip_norm: bound on the global norm of the gradient of each optimizer step.
      z_loss: weight of the mean squared log-partition added to the loss. 0: none.
      loss_chunk: time positions whose logits exist at once; bounds the memory that
        [batch, time, vocabulary] logits would take.
      microbatches: parts that a batch is cut into; gradients are summed over them. Divides
        every stage's batch size. Does not change the result, only the memory needed.
      recurrence_dilation: dilation of the sparse pass of active recurrence learning, which
        the data stages switch on.
      recurrence_local: local window of that pass.
      recurrence_initial: initial tokens visible throughout that pass.
      seed: of the parameters at the start and of the data's order.
      init_from: a model folder to start from (any that this project wrote). A memory it
        lacks is added as the memory's config says. Empty: random parameters. Where it holds
        one folder a backbone, the backbone's own is taken.
      log_every: steps between lines of `metrics.jsonl`.
      checkpoint_every: steps between checkpoints. The last step is always saved.
      keep: newest checkpoints to keep.
    """

    steps: int = 0
    learning_rate: float = 6e-5
    memory_learning_rate: float | None = None
    end_learning_rate: float = 1e-6
    warmup: float = 0.02
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    z_loss: float = 0.0
    loss_chunk: int = 1024
    microbatches: int = 1
    recurrence_dilation: int = 64
    recurrence_local: int = 0
    recurrence_initial: int = 0
    seed: int = 1005
    init_from: str = ""
    log_every: int = 10
    checkpoint_every: int = 1000
    keep: int = 2

    def __post_init__(self):
        for field in (
            "learning_rate",
            "epsilon",
            "clip_norm",
            "loss_chunk",
            "microbatches",
            "log_every",
            "checkpoint_every",
            "keep",
        ):
            check_positive(f"train.{field}", getattr(self, field))
        if self.memory_learning_rate is not None:
            check_positive("train.memory_learning_rate", self.memory_learning_rate)
        for field in (
            "steps",
            "end_learning_rate",
            "weight_decay",
            "z_loss",
            "recurrence_local",
            "recurrence_initial",
        ):
            if getattr(self, field) < 0:
                raise ConfigError(f"train.{field}", getattr(self, field), "must not be negative")
        for field in ("warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(
                    f"train.{field}", getattr(self, field), "must be at least 0 and below 1"
                )
        for name, peak in (
            ("learning_rate", self.learning_rate),
            ("memory_learning_rate", self.peak_memory_learning_rate),
        ):
            if self.end_learning_rate > peak:
                raise ConfigError(
                    "train.end_learning_rate",
                    self.end_learning_rate,
                    f"must not exceed train.{name}={peak}",
                )
        if self.recurrence_dilation < 1:
            raise ConfigError(
                "train.recurrence_dilation", self.recurrence_dilation, "must be at least 1"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError("train.seed", self.seed, "must fit in 32 unsigned bits")

    @property
    def peak_memory_learning_rate(self) -> float:
        """The memory's own peak learning rate, or everyone's."""
        if self.memory_learning_rate is None:
            return self.learning_rate
        return self.memory_learning_rate
