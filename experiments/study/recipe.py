"""What a run of the study is: one model, one data order, and the knobs that are tuned.

A decoder of 23M parameters, 25M with the memory (6 layers x 512), on 1024 tokens, trained from
nothing in three stages of 32,768 tokens a step:

  text     256 tokens   natural text, and random sequences that are said again
  short    256 tokens   facts and questions in a row of their own, needle tasks in short contexts
  full    1024 tokens   the eight needle tasks at the length that is evaluated

Text stays in the mixture to the end. Rows are the same for every seed and backbone; a seed changes
the parameters at the start and the order. Sparse scores play no part in any choice made here.
"""

import dataclasses

from experiments.study import data
from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import MemoryConfig
from ratjax.config.needle import NeedleConfig, Setting
from ratjax.config.presets import preset
from ratjax.config.train import TrainConfig
from ratjax.errors import check_choice, check_positive

LENGTH, SHORT, TOKENS_A_STEP = 1024, 256, 32_768
BLOCK, BUDGETS = 16, ("1/4", "1/8", "1/16")

# Unrolled, a step of training takes 0.6 of the time (16.6 ms instead of 27.2: attention, one
# H100, JAX 0.11.2).
MODEL = dataclasses.replace(preset("study"), dtype="bfloat16", unroll=6)

# 64 blocks of 16 tokens, as the paper's 4096 tokens are 64 blocks of 64; SnapKV's window is
# likewise a 64th of the context. Answers take at most 30 tokens or so.
NEEDLE = NeedleConfig(
    context_length=LENGTH,
    tokens_to_generate=data.ANSWER,
    block_size=BLOCK,
    budgets=BUDGETS,
    window=16,
    batch_size=128,
)
# More than tuning's: there are many settings, and a prompt's cache is small.
MAIN_BATCH = 256
# Prompts that recipes are chosen by are not those that the chosen ones are judged by.
TUNING_PROMPTS, MAIN_PROMPTS = 7, 42


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The knobs.

    Attributes:
      learning_rate: peak, of everything but the memory.
      memory_learning_rate: peak, of the memory; None: the same.
      memory: the gate's start and input, its bias, its place.
      recurrence: active recurrence learning, in the text stage alone: a sparse pass teaches
        nothing where an answer has to be looked up.
      curriculum: `staged`, or `full`: no short stage, its steps go to the full length.
      questions: about one context, at most, in training.
      text: share of text in the stages after the first.
      steps: of all stages together.
      rows: of the full-length set, and of the short one; seen again once all of them were.
      folder: where the data is made.
    """

    learning_rate: float = 1e-3
    memory_learning_rate: float | None = None
    memory: MemoryConfig = MemoryConfig()
    recurrence: str = "off"
    curriculum: str = "staged"
    questions: int = 8
    text: float = 0.05
    steps: int = 5000
    rows: int = 96_000
    folder: str = "runs/study/data"

    def __post_init__(self):
        check_choice("recipe.curriculum", self.curriculum, ("staged", "full"))
        for field in ("questions", "steps", "rows", "text"):
            check_positive(f"recipe.{field}", getattr(self, field))


def stages(recipe: Recipe) -> tuple[DataStage, ...]:
    """A tenth of the steps on text, four tenths on short contexts, half at full length."""
    on_text = max(1, recipe.steps // 10)
    on_short = max(1, 4 * recipe.steps // 10) if recipe.curriculum == "staged" else 0
    folders = data.Folders(recipe.folder, recipe.rows, recipe.questions)
    with_text = ((folders.text, recipe.text),)
    left = 1 - recipe.text
    parts = [
        (on_text, SHORT, ((folders.text, 0.5), (folders.copies(SHORT), 0.5)), recipe.recurrence),
        (
            on_short,
            SHORT,
            (
                *with_text,
                (folders.copies(SHORT), 0.1 * left),
                (folders.drills(SHORT), 0.3 * left),
                *_shared(folders.needles(SHORT), 0.6 * left),
            ),
            "off",
        ),
        (
            recipe.steps - on_text - on_short,
            LENGTH,
            (*with_text, *_shared(folders.needles(LENGTH), left)),
            "off",
        ),
    ]
    return tuple(
        DataStage(steps, length, TOKENS_A_STEP // length, sources, recurrence)
        for steps, length, sources, recurrence in parts
        if steps
    )


def _shared(folders: list[str], weight: float) -> tuple[tuple[str, float], ...]:
    """Eight tasks at equal weights that add up to `weight`."""
    return tuple((folder, weight / len(folders)) for folder in folders)


def experiment(
    name: str, backbone: str, recipe: Recipe, seed: int, samples: int, needle: NeedleConfig
) -> Experiment:
    """One run: everything but `backbone`, `recipe` and `seed` is the study's."""
    return Experiment(
        name=name,
        description="A decoder of 23M parameters (25M with the memory), trained from nothing.",
        backbone=backbone,
        samples=samples,
        model=MODEL,
        memory=recipe.memory,
        train=TrainConfig(
            learning_rate=recipe.learning_rate,
            memory_learning_rate=recipe.memory_learning_rate,
            end_learning_rate=1e-5,
            warmup=0.03,
            weight_decay=0.1,
            seed=seed,
            log_every=20,
            held_out=((data.Folders(recipe.folder, recipe.rows, 1).held_out, 1.0),),
            held_out_every=500,
            held_out_batches=1,
            checkpoint_every=1000,
            keep=1,
            watchdog_exit=300.0,
        ),
        data=DataConfig(
            stages=stages(recipe),
            tokenizer=data.Folders(recipe.folder, recipe.rows, 1).tokenizer,
            prepare="experiments.study.data:prepare",
        ),
        mesh=MeshConfig(data=1),
        needle=needle,
    )


def tuning_needle() -> NeedleConfig:
    """Dense alone, so that no choice can lean on a sparse score."""
    return dataclasses.replace(NEEDLE, methods=(), seed=TUNING_PROMPTS)


def main_needle() -> NeedleConfig:
    """Dense, three methods at three budgets, five draws of random selectors at 1/4; hit rates."""
    tokens = LENGTH // 4
    shared = {"budget": "1/4", "window": NEEDLE.window, "selector": "random"}
    drawn = tuple(
        Setting(method, block, tokens // block, selector_seed=seed, **shared)
        for method, block in (("quest", BLOCK), ("moba", BLOCK), ("snapkv", 1))
        for seed in range(5)
    )
    return dataclasses.replace(
        NEEDLE, extra=drawn, hit_rates=True, seed=MAIN_PROMPTS, batch_size=MAIN_BATCH
    )
