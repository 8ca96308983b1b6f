"""An experiment: one matched pair of models, how it is trained, how it is evaluated."""

import dataclasses

from ratjax.config.data import DataConfig
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.needle import NeedleConfig
from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError, check_choice, check_positive

BACKBONES = ("attention", "memory")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that defines a run. An experiment file's `get_config()` returns one.

    Attributes:
      name: names the run in reports.
      description: one sentence on what the models are, for reports.
      backbone: `attention`, `memory`, or `both`: the first then the second.
      samples: prompts a needle task.
      model: the decoder without memory. The pair differs in `memory` alone.
      memory: what the `memory` backbone adds.
      train: optimizer, schedule, steps, checkpoints.
      data: what is trained on, in which order.
      mesh: how training is spread over devices.
      needle: what is evaluated.
    """

    name: str
    model: ModelConfig
    memory: MemoryConfig = MemoryConfig()
    description: str = ""
    backbone: str = "both"
    samples: int = 500
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    needle: NeedleConfig = NeedleConfig()

    def __post_init__(self):
        check_choice("backbone", self.backbone, (*BACKBONES, "both"))
        check_positive("samples", self.samples)
        if self.model.memory is not None:
            raise ConfigError(
                "model.memory",
                self.model.memory,
                "an experiment's memory is its own field `memory`, so that both backbones share "
                "`model`; leave model.memory at None",
            )

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones to run, attention first."""
        return BACKBONES if self.backbone == "both" else (self.backbone,)

    def model_config(self, backbone: str) -> ModelConfig:
        """The model of one backbone: `model`, with `memory` where the backbone has it."""
        check_choice("backbone", backbone, BACKBONES)
        memory = self.memory if backbone == "memory" else None
        return dataclasses.replace(self.model, memory=memory)
