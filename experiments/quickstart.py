"""A matched pair of tiny models, trained from nothing on two CPU cores, and what sparsity does.

  make quickstart

trains a tokenizer, both models and evaluates dense, Quest, MoBA and SnapKV at three budgets on
the eight needle tasks: 160 cells. The models are tiny and have seen 1.6 million tokens: the
report shows that everything works and how to read it, not what the method is worth.

Stages, the same rows in the same order for both models:

  pretrain    64 tokens   the essays, and random sequences that repeat
  drill      128 tokens   short facts and short questions about them
  short      256 tokens   the eight tasks in short contexts, several questions each
  fine-tune  512 tokens   the eight tasks at the length that is evaluated
"""

import math
import pathlib
import random

from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.needle import NeedleConfig
from ratjax.config.overrides import to_config_dict
from ratjax.config.train import TrainConfig

# Tasks that take longer to learn get more rows.
WEIGHTS = {"niah_single_1": 1.5, "niah_multikey_1": 1.5, "niah_multikey_2": 1.5}
FOLDER = "runs/quickstart/data"
VOCABULARY = 1024
CONTEXT, ANSWER = 512, 48

PRETRAIN = DataStage(300, 64, 16, ((f"{FOLDER}/essays", 1.0), (f"{FOLDER}/copies", 2.5)))
DRILL = DataStage(150, 128, 16, ((f"{FOLDER}/drill", 1.0),))
SHORT = DataStage(320, 256, 8, ((f"{FOLDER}/short", 1.0),))
FINE_TUNE = DataStage(140, CONTEXT, 4, ((f"{FOLDER}/tune", 1.0),))


def get_config():
    return to_config_dict(
        Experiment(
            name="quickstart",
            description="A pair of tiny decoders (0.6M parameters) trained from nothing on a CPU.",
            samples=20,
            model=ModelConfig(
                vocab_size=VOCABULARY,
                hidden_size=128,
                num_layers=2,
                num_heads=2,
                num_kv_heads=2,
                head_dim=64,
                intermediate_size=256,
                tie_embeddings=True,
                rope_theta=10_000.0,
                init_std=0.03,
                qk_init="equal",
                previous_token_embedding=True,
                previous_token_init="copy",
                unroll=2,
            ),
            memory=MemoryConfig(init="normal"),
            train=TrainConfig(
                learning_rate=4e-3,
                end_learning_rate=4e-4,
                warmup=0.03,
                weight_decay=0.01,
                seed=0,
                log_every=10,
                checkpoint_every=400,
            ),
            data=DataConfig(
                stages=(PRETRAIN, DRILL, SHORT, FINE_TUNE),
                tokenizer=f"{FOLDER}/tokenizer.json",
                prepare="experiments.quickstart:prepare",
            ),
            mesh=MeshConfig(data=1),  # one device, however many there are: the models are tiny
            needle=NeedleConfig(
                context_length=CONTEXT,
                tokens_to_generate=ANSWER,
                block_size=8,  # 64 blocks in the context, as in the paper
                window=16,
                batch_size=40,
            ),
        )
    )


def prepare(experiment: Experiment) -> None:
    """Makes the tokenizer and the training rows, where they are missing."""
    from ratjax.data.stream import write_stream
    from ratjax.data.tokenizer import END_OF_TEXT, train_tokenizer
    from ratjax.files import write_file
    from ratjax.needle import (
        CopyRows,
        DrillRows,
        NeedleRows,
        build_rows,
        load_essays,
        write_rows,
    )

    folder = pathlib.Path(experiment.data.tokenizer).parent
    essays = load_essays(experiment.needle.essays or None)
    path = folder / "tokenizer.json"
    if path.exists():
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    else:
        tokenizer = train_tokenizer([essays.text, *needle_text()], VOCABULARY)
        write_file(path, tokenizer.to_str())
    eos = tokenizer.token_to_id(END_OF_TEXT)
    if not (folder / "essays").exists():
        write_stream(folder / "essays", [essays.text], tokenizer, eos)

    def needles(stage: DataStage, questions: dict[str, int]) -> list[NeedleRows]:
        """Each task's rows; a question more about the same context takes up to 48 tokens."""
        count = stage.steps * stage.batch_size
        total = sum(WEIGHTS.get(task, 1.0) for task in experiment.needle.tasks)
        return [
            NeedleRows(
                task,
                math.ceil(count * WEIGHTS.get(task, 1.0) / total),
                stage.sequence_length,
                48 * questions[task] if task in questions else 32,
                questions.get(task, 1),
            )
            for task in experiment.needle.tasks
        ]

    drills = DRILL.steps * DRILL.batch_size // 4
    rows = {
        "copies": (64, [CopyRows(2400, (2, 32), "fill"), CopyRows(1200, (2, 32), "fill", "word")]),
        "drill": (
            128,
            [
                DrillRows(2 * drills, "nouns", "pairs", 8),
                DrillRows(drills, "words", "pairs", 6),
                DrillRows(drills, "words", "numbers", 4),
            ],
        ),
        "short": (256, needles(SHORT, {"niah_multikey_2": 2})),
        "tune": (CONTEXT, needles(FINE_TUNE, {"niah_multikey_1": 3, "niah_multikey_2": 5})),
    }
    for seed, (name, (length, parts)) in enumerate(rows.items(), start=1):
        if not (folder / name).exists():
            made = build_rows(
                parts, tokenizer, length=length, eos_id=eos, seed=seed, haystack=essays
            )
            write_rows(made, folder / name)


def needle_text(lines: int = 3000, seed: int = 0) -> list[str]:
    """Needles and questions with random keys and values, for the tokenizer to learn from."""
    from ratjax.needle import wording, words

    rng = random.Random(seed)
    text = []
    for key_type, value_type in (("words", "numbers"), ("words", "uuids"), ("uuids", "uuids")):
        for _ in range(lines):
            key, value = words.draw(key_type, rng), words.draw(value_type, rng)
            text += [
                wording.needle(value_type, key, value),
                wording.question(value_type, [key], singular=True),
            ]
    return text
