"""How a model is trained: the optimizer, its schedule, and what a run writes."""

import dataclasses
import math
import re

from ratjax.errors import ConfigError, check_choice, check_positive


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
      gate_lengths: measure at each logged step how far back the memory reaches, by layer
        (`ratjax.train.gates`): a forward pass over one sequence a device.
      profile: steps to trace, as "10:15" (both included), into <workdir>/profile. Empty: none.
      held_out: pairs (folder, weight) that are not trained on, for `loss_held_out`: the loss
        on a mixture of them, at the stage's batch size and sequence length. Measured before
        each checkpoint.
      held_out_every: measured every so many steps too. 0: before checkpoints alone.
      held_out_batches: batches of it, always the same ones.
      checkpoint_every: steps between checkpoints. The last step is always saved.
      keep: newest checkpoints to keep.
      keep_every: checkpoints of the steps that this divides are kept for good. 0: none.
      keep_best: so many of the lowest loss are kept as well: of the held-out loss where there
        is one, else of the mean training loss since the checkpoint before. 0: none.
      grace_seconds: how long the platform waits between SIGTERM, or its notice of a
        preemption, and the end. A checkpoint that would take longer is not begun.
      on_bad_step: what to do where a loss or gradient is not finite, or a loss spikes. `stop`:
        end the run; the last good checkpoint stays. `skip`: leave parameters and optimizer
        as they were before that optimizer step, count it, and go on.
      max_skipped: more skipped optimizer steps in a row than this end the run.
      spike: a loss this many standard deviations above the running mean is a spike. 0: none
        is.
      spike_window: losses that the running mean and deviation are over, about; each data
        stage begins anew, and none of its first so many losses is a spike.
      watchdog: seconds without progress after which a line says in which phase. 0: never.
      watchdog_exit: seconds without progress that end the process, with status 3. 0: never.
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
    gate_lengths: bool = True
    profile: str = ""
    held_out: tuple[tuple[str, float], ...] = ()
    held_out_every: int = 0
    held_out_batches: int = 8
    checkpoint_every: int = 1000
    keep: int = 2
    keep_every: int = 0
    keep_best: int = 0
    grace_seconds: float = 30.0
    on_bad_step: str = "stop"
    max_skipped: int = 10
    spike: float = 0.0
    spike_window: int = 128
    watchdog: float = 600.0
    watchdog_exit: float = 0.0

    def __post_init__(self):
        for field in (
            "learning_rate",
            "epsilon",
            "clip_norm",
            "loss_chunk",
            "microbatches",
            "log_every",
            "held_out_batches",
            "checkpoint_every",
            "keep",
            "max_skipped",
            "spike_window",
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
            "held_out_every",
            "keep_every",
            "keep_best",
            "grace_seconds",
            "spike",
            "watchdog",
            "watchdog_exit",
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
        check_choice("train.on_bad_step", self.on_bad_step, ("stop", "skip"))
        if self.keep_every % self.checkpoint_every:
            raise ConfigError(
                "train.keep_every",
                self.keep_every,
                f"must be a multiple of train.checkpoint_every={self.checkpoint_every}",
            )
        for folder, weight in self.held_out:
            if not 0 < weight < math.inf:
                raise ConfigError(
                    "train.held_out", weight, f"the weight of {folder!r} must be above 0"
                )
        self.profiled_steps  # noqa: B018 (refuses a range that is none)

    @property
    def profiled_steps(self) -> range:
        """The steps to trace, from 1."""
        if not self.profile:
            return range(0)
        found = re.fullmatch(r"(\d+):(\d+)", self.profile)
        steps = range(int(found[1]), int(found[2]) + 1) if found else range(0)
        if not steps or steps[0] < 1:
            raise ConfigError(
                "train.profile", self.profile, 'must read "first:last", steps counted from 1'
            )
        return steps

    @property
    def is_guarded(self) -> bool:
        """Whether the step itself judges losses, instead of the host alone."""
        return self.on_bad_step == "skip" or self.spike > 0

    @property
    def peak_memory_learning_rate(self) -> float:
        """The memory's own peak learning rate, or everyone's."""
        if self.memory_learning_rate is None:
            return self.learning_rate
        return self.memory_learning_rate
