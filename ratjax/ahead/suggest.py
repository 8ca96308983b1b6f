"""Which meshes, microbatches and rematerialisation are worth compiling for a pod.

A compilation takes minutes and there are hundreds of settings, so they are first judged by
arithmetic: what cannot fit is dropped, the rest is ordered by the time of a step. Both are rough
(the compiler has the last word on both), but rough in the same way for all.
"""

import dataclasses
from collections.abc import Iterator

from ratjax.ahead.topology import Topology
from ratjax.config.data import DataStage
from ratjax.config.mesh import MeshConfig, check_model
from ratjax.config.model import ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError
from ratjax.model.parameters import abstract_parameters
from ratjax.train.flops import step_flops
from ratjax.train.step import passes

REMAT = ("none", "save_products", "save_attention", "full")
_LARGEST_TENSOR = 8  # beyond, exchanges of activations cost more than they save


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting of a training step.

    Attributes:
      mesh: sizes.
      microbatches: parts of a batch.
      remat: what is recomputed.
      hbm_bytes: of each chip, by arithmetic.
      seconds: of a step, by arithmetic.
    """

    mesh: MeshConfig
    microbatches: int
    remat: str
    hbm_bytes: float
    seconds: float

    def flags(self) -> list[str]:
        """The overrides that choose it."""
        sizes = dataclasses.asdict(self.mesh)
        return [
            *(f"--config.mesh.{axis}={size}" for axis, size in sizes.items()),
            f"--config.train.microbatches={self.microbatches}",
            f"--config.model.remat={self.remat}",
        ]


def candidates(
    topology: Topology, model: ModelConfig, train: TrainConfig, stage: DataStage
) -> list[Candidate]:
    """The settings that may fit, the fastest by arithmetic first.

    Of those that only differ in how `data` and `fsdp` share the chips, the fastest stands for all.
    """
    found = [
        Candidate(
            mesh,
            microbatches,
            remat,
            hbm_bytes(model, train, stage, mesh, microbatches, remat),
            seconds(topology, model, train, stage, mesh, microbatches, remat),
        )
        for mesh in meshes(topology.chips, model, stage)
        for microbatches in _microbatches(stage, mesh)
        for remat in REMAT
    ]
    fitting = [c for c in found if c.hbm_bytes <= topology.chip.hbm_bytes]
    best: dict[tuple, Candidate] = {}
    for candidate in sorted(fitting, key=lambda c: (c.seconds, c.hbm_bytes)):
        mesh = candidate.mesh
        alike = mesh.tensor, mesh.context, candidate.microbatches, candidate.remat
        best.setdefault(alike, candidate)
    return list(best.values())


def meshes(chips: int, model: ModelConfig, stage: DataStage) -> Iterator[MeshConfig]:
    """The meshes of that many chips that the model and the batch allow."""
    for tensor in _divisors(chips):
        for context in _divisors(chips // tensor):
            for fsdp in _divisors(chips // tensor // context):
                mesh = MeshConfig(chips // tensor // context // fsdp, fsdp, tensor, context)
                if tensor > _LARGEST_TENSOR or stage.sequence_length % context:
                    continue
                if stage.batch_size % mesh.batch_shards:
                    continue
                try:
                    check_model(mesh, model)
                except ConfigError:
                    continue
                yield mesh


def _microbatches(stage: DataStage, mesh: MeshConfig) -> list[int]:
    """Numbers of parts that leave every chip whole sequences."""
    return _divisors(stage.batch_size // mesh.batch_shards)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _parameters(model: ModelConfig) -> int:
    return sum(array.size for array in abstract_parameters(model).values())


def hbm_bytes(
    model: ModelConfig,
    train: TrainConfig,
    stage: DataStage,
    mesh: MeshConfig,
    microbatches: int,
    remat: str,
) -> float:
    """Bytes of each chip: state, gradients, activations kept and in use, logits."""
    parameters = _parameters(model)
    sequences = stage.batch_size // microbatches // mesh.batch_shards
    tokens = sequences * stage.sequence_length // mesh.context
    width, wide = model.hidden_size, model.intermediate_size / mesh.tensor
    heads = model.head_dim * (model.num_heads + 2 * model.num_kv_heads) / mesh.tensor
    # Parameter, two moments, the gradient and, over microbatches, their sum: float32.
    state = (16 + 4 * (microbatches > 1)) * parameters / (mesh.fsdp * mesh.tensor)
    gathered = 2 * 2 * parameters / model.num_layers / mesh.tensor
    # The memory's kernel keeps keys and values, its gates are one more projection of the keys.
    scanned = model.head_dim * 3 * model.num_kv_heads / mesh.tensor if model.memory else 0
    attended = heads + scanned + model.head_dim * model.num_heads / mesh.tensor
    kept = {
        "full": width,
        "save_attention": width + attended,
        "save_products": 3 * width + attended + 2 * wide,
        "none": 6 * width + 3 * heads + scanned + 3 * wide,
    }[remat]
    in_use = 4 * tokens * (6 * width + 2 * heads + 3 * wide)
    chunk = min(train.loss_chunk, stage.sequence_length // mesh.context)
    logits = 3 * 4 * sequences * chunk * model.vocab_size / mesh.tensor
    head = 6 * width * model.vocab_size / mesh.tensor
    return state + gathered + 2 * tokens * kept * model.num_layers + max(in_use, logits + head)


def seconds(
    topology: Topology,
    model: ModelConfig,
    train: TrainConfig,
    stage: DataStage,
    mesh: MeshConfig,
    microbatches: int,
    remat: str,
) -> float:
    """A step's time: arithmetic at the peak, with exchanges half hidden behind it."""
    chip = topology.chip
    patterns = [p for group in passes(train, stage.recurrence) for p in group.values()]
    work = step_flops(model, patterns, stage.sequence_length, stage.batch_size) / topology.chips
    again = remat in ("save_attention", "full")  # the forward pass, or most of it
    compute = work * (4 / 3 if again else 1) / chip.peak_flops
    parameters = _parameters(model) / mesh.tensor
    # Gathered for both directions and scattered once, in bfloat16, at every microbatch.
    travelling = 3 * 2 * parameters * microbatches * _share(mesh.fsdp)
    travelling += 2 * 4 * parameters / mesh.fsdp * microbatches * _share(mesh.data)
    tokens = stage.tokens_per_step / mesh.batch_shards / mesh.context
    residual = 2 * tokens * model.hidden_size * model.num_layers
    # Two sums over the tensor axis a layer and direction, one more forward pass recomputed.
    travelling += 2 * 2 * (3 if again else 2) * residual * _share(mesh.tensor)
    travelling += 4 * 3 * residual * _share(mesh.context) / mesh.context
    network = len(patterns) * travelling / chip.ici_bandwidth
    return max(compute, network) + 0.5 * min(compute, network)


def _share(devices: int) -> float:
    return (devices - 1) / devices
