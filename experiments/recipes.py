"""What the training runs at full size share: RAT+'s optimizer, FineWeb-Edu, the needle rows.

Every run is a pair: `backbone` says whether the memory is there, and nothing else differs. Files
that tell of a run state what it needs in a line that begins with "Compute:", by the formula of
ratjax/train/flops.py, and in one that begins with "State:"; tests/experiments/test_training.py
holds the lines against the configurations.
"""

import dataclasses
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.needle.settings import NEEDLE, pick
from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.presets import RATPLUS_MEMORY, preset, with_memory
from ratjax.config.train import TrainConfig

LENGTH = 4096
# The needle fine-tuning of the released code (wimh966/rat-plus, ruler_sft): 2250 rows of each of
# eight tasks, four times over, 32 a step; what is left of a round is dropped. That code draws with
# replacement; here every row has its turn in each round.
ROWS_A_TASK, ROUNDS, NEEDLE_BATCH = 2250, 4, 32
# Of the rows; the prompts that are evaluated have another (`needle.seed`).
NEEDLE_SEED = 1005

# Checkpoints: two, some for good, and the one with the lowest held-out loss. A pod whose hosts have
# waited for each other for half an hour is hung, and had better end.
_RUN = TrainConfig(
    weight_decay=0.1,
    checkpoint_every=250,
    keep_every=1000,
    keep_best=1,
    watchdog_exit=1800.0,
)


@dataclasses.dataclass(frozen=True)
class Family:
    """Models of one origin.

    Attributes:
      model: without the memory.
      memory: what the other backbone adds.
      text: the stream of FineWeb-Edu in the family's tokens.
      needles: rows of the needle tasks in the family's tokens.
      tokenizer: beside a converted model, or from its publisher.
    """

    model: ModelConfig
    memory: MemoryConfig
    text: str
    needles: str
    tokenizer: str


def olmo2(size: str) -> Family:
    """OLMo2 of a size, as `ratjax.config.presets` names it; its tokenizer is the same for all."""
    return Family(
        _at_full_size(preset(size)),
        MemoryConfig(),
        "data/fineweb-edu",
        "data/needles",
        f"models/{size}/tokenizer.json",
    )


def ratplus(size: str) -> Family:
    """RAT+ of a size, with the tokenizer it was trained with (huggyllama/llama-7b)."""
    return Family(
        _at_full_size(with_memory(preset(size), None)),
        RATPLUS_MEMORY,
        "data/fineweb-edu-llama",
        "data/needles-llama",
        "models/llama/tokenizer.json",
    )


def _at_full_size(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, dtype="bfloat16", remat="full")


def on_text(
    name: str,
    description: str,
    family: Family,
    *,
    tokens: float,
    batch: int,
    recurrence: str = "two_step",
    **train,
) -> Experiment:
    """An experiment that trains on FineWeb-Edu.

    Args:
      name: of the run.
      description: of the models.
      family: see there.
      tokens: in all; what makes no whole batch is dropped.
      batch: sequences of a step.
      recurrence: as `DataStage` has it.
      train: fields of `TrainConfig`: learning rates, warmup, microbatches, start.
    """
    stage = DataStage(
        steps=int(tokens) // (LENGTH * batch),
        sequence_length=LENGTH,
        batch_size=batch,
        sources=((family.text, 1.0),),
        recurrence=recurrence,
    )
    held_out = ((f"{family.text}/held_out", 1.0),)
    config = dataclasses.replace(_RUN, held_out=held_out, **train)
    return _experiment(name, description, family, config, DataConfig((stage,), family.tokenizer))


def on_needles(
    name: str, description: str, family: Family, *, start: str, recurrence: str = "off"
) -> Experiment:
    """An experiment that fine-tunes on the eight needle tasks, as the released code does.

    Args:
      name: of the run.
      description: of the models.
      family: see there.
      start: the model folder to start from.
      recurrence: as `DataStage` has it.
    """
    stage = DataStage(
        steps=ROWS_A_TASK * len(NEEDLE.tasks) // NEEDLE_BATCH * ROUNDS,
        sequence_length=LENGTH,
        batch_size=NEEDLE_BATCH,
        sources=((family.needles, 1.0),),
        recurrence=recurrence,
    )
    config = dataclasses.replace(
        _RUN, learning_rate=1e-5, warmup=0.05, weight_decay=0.01, init_from=start
    )
    data = DataConfig((stage,), family.tokenizer, prepare="experiments.recipes:prepare_needles")
    return _experiment(name, description, family, config, data)


def control(pair: Callable[[], ConfigDict]) -> Callable[[str], ConfigDict]:
    """The `get_config` of a run's control: the same run without the memory.

    Behind the colon of the file's name stands `matched`, in which nothing else differs, or `dense`,
    which leaves the sparse pass of active recurrence learning out.
    """

    def get_config(variant: str = "matched") -> ConfigDict:
        recurrence = pick({"matched": None, "dense": "off"}, variant)
        config = pair()
        config.backbone = "attention"
        for stage in config.data.stages if recurrence else ():
            stage.recurrence = recurrence
        return config

    return get_config


def prepare_needles(experiment: Experiment) -> None:
    """Makes the rows of the needle tasks, where they are missing."""
    from ratjax.data.encoding import find_eos, load_tokenizer
    from ratjax.needle import NeedleRows, build_rows, load_essays, write_rows

    (stage,) = experiment.data.stages
    ((folder, _),) = stage.sources
    if pathlib.Path(folder).exists():
        return
    tokenizer = load_tokenizer(experiment.data.tokenizer)
    parts = [NeedleRows(task, ROWS_A_TASK, stage.sequence_length) for task in NEEDLE.tasks]
    rows = build_rows(
        parts,
        tokenizer,
        length=stage.sequence_length,
        eos_id=find_eos(tokenizer),
        seed=NEEDLE_SEED,
        haystack=load_essays(experiment.needle.essays or None),
    )
    write_rows(rows, folder)


def _experiment(
    name: str, description: str, family: Family, train: TrainConfig, data: DataConfig
) -> Experiment:
    return Experiment(
        name=name,
        description=description,
        backbone="memory",
        model=family.model,
        memory=family.memory,
        train=train,
        data=data,
        mesh=MeshConfig(data=1, fsdp=-1),
        needle=NEEDLE,
    )
