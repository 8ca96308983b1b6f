"""How many devices work on what: the sizes of the mesh's axes."""

import dataclasses
import math

from ratjax.config.data import DataConfig
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError

AXES = ("data", "fsdp", "tensor", "context")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes; their product is the number of devices.

    One of them may be -1: what the others leave. All of them 1: the first device alone, whatever
    else there is.

    Attributes:
      data: groups of devices that hold the whole state each and share out the batch. On several
        slices of a pod this axis runs across them.
      fsdp: devices that share out the parameters and the optimizer's moments, and the batch; a
        layer's parameters are gathered when it runs.
      tensor: devices that share out heads, feed-forward channels and vocabulary.
      context: devices that share out each sequence.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self):
        open_axes = [axis for axis in AXES if getattr(self, axis) == -1]
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise ConfigError(f"mesh.{axis}", size, "must be at least 1, or -1 for the rest")
        if len(open_axes) > 1:
            raise ConfigError(
                f"mesh.{open_axes[1]}", -1, f"mesh.{open_axes[0]} is -1 too; set one of them"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def size(self) -> int:
        """Devices in all, of a resolved configuration."""
        return math.prod(self.shape)

    @property
    def batch_shards(self) -> int:
        """Parts that a batch is cut into, of a resolved configuration."""
        return self.data * self.fsdp

    def resolve(self, devices: int) -> "MeshConfig":
        """The same sizes with -1 worked out.

        Args:
          devices: how many there are.

        Raises:
          ConfigError: the sizes do not come to that number.
        """
        if self.shape == (1,) * len(AXES):
            return self
        fixed = math.prod(size for size in self.shape if size != -1)
        product = " * ".join(f"mesh.{axis}={getattr(self, axis)}" for axis in AXES)
        if -1 not in self.shape:
            if fixed != devices:
                raise ConfigError(
                    "mesh",
                    self.shape,
                    f"{product} comes to {fixed}, but there are {devices} devices; set one to -1",
                )
            return self
        rest = AXES[self.shape.index(-1)]
        if devices % fixed:
            raise ConfigError(
                f"mesh.{rest}",
                -1,
                f"the {devices} devices are no multiple of {fixed}, the product of the others "
                f"({product})",
            )
        return dataclasses.replace(self, **{rest: devices // fixed})


def check_model(mesh: MeshConfig, model: ModelConfig) -> None:
    """Raises `ConfigError` unless a resolved mesh divides the model."""
    for axis, field in (
        ("fsdp", "hidden_size"),
        ("tensor", "num_heads"),
        ("tensor", "num_kv_heads"),
        ("tensor", "intermediate_size"),
        ("tensor", "vocab_size"),
    ):
        _check_divides(mesh, axis, f"model.{field}", getattr(model, field))
    heads = model.num_heads // mesh.tensor
    if heads % mesh.context:
        raise ConfigError(
            "mesh.context",
            mesh.context,
            f"must divide the {heads} query heads of a device (model.num_heads={model.num_heads} "
            f"over mesh.tensor={mesh.tensor}): attention shares out its heads over this axis",
        )


def check_data(mesh: MeshConfig, train: TrainConfig, data: DataConfig) -> None:
    """Raises `ConfigError` unless a resolved mesh divides the batches of every stage."""
    for stage in data.stages:
        _check_divides(mesh, "context", "data.stages.sequence_length", stage.sequence_length)
        part = stage.batch_size // train.microbatches
        if part % mesh.batch_shards:
            raise ConfigError(
                "data.stages.batch_size",
                stage.batch_size,
                f"over train.microbatches={train.microbatches} leaves {part} sequences, which "
                f"mesh.data={mesh.data} * mesh.fsdp={mesh.fsdp} = {mesh.batch_shards} must divide; "
                "raise the batch, or lower the microbatches or one of the two",
            )


def _check_divides(mesh: MeshConfig, axis: str, field: str, value: int) -> None:
    size = getattr(mesh, axis)
    if value % size:
        raise ConfigError(f"mesh.{axis}", size, f"must divide {field}={value}")
