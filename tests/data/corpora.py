"""Small corpora in every format, and what tokenizing them must give."""

import gzip
import json
import pathlib

import numpy as np
import tokenizers
from fsspec.implementations.memory import MemoryFileSystem

from ratjax.data.corpus.files import expand, plan_shards
from ratjax.data.corpus.job import Job
from ratjax.data.corpus.progress import Progress
from ratjax.data.corpus.shard import Recipe

EOS = 3
WORDS = ["a", "b", "c", "<eos>", "d", "e", "f", "g", "\n"]
LETTERS = [word for word in WORDS if word.isalpha()]


def tokenizer(special: bool = True) -> tokenizers.Tokenizer:
    """One token a letter; `<eos>` is special."""
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if special:
        made.add_special_tokens(["<eos>"])
    return made


def documents(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(LETTERS, rng.integers(1, 30))) for _ in range(count)]


def tokens_of(texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*map(WORDS.index, text.split()), EOS]]


def write_json_lines(path: pathlib.Path, texts: list[str], field: str = "text") -> pathlib.Path:
    content = "".join(json.dumps({"id": n, field: text}) + "\n" for n, text in enumerate(texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def make_job(folder: pathlib.Path, source, shard_bytes: int = 600, **fields) -> Job:
    """A job on `source` with the tokenizer above, saved beside the folder."""
    path = folder.parent / "tokenizer.json"
    if not path.exists():
        tokenizer().save(str(path))
    shards = plan_shards(expand([str(source)]), shard_bytes)
    most = fields.pop("max_tokens", None)
    recipe = Recipe(**{"eos_id": EOS, "held_out": 0.2, **fields})
    return Job(folder, shards, path, recipe, most)


def stored(folder: pathlib.Path) -> list[int]:
    """The tokens of a stream, file after file."""
    files = json.loads((folder / "index.json").read_text())["files"]
    return [t for file in files for t in np.fromfile(folder / file["name"], "<u4").tolist()]


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file beneath a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Quiet(Progress):
    """Keeps what it is told."""

    def __init__(self):
        self.made, self.read, self.total, self.done = 0, 0, None, None

    def begin(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def shard(self, size: int) -> None:
        self.read += size

    def tokens(self, count: int) -> None:
        self.made += count


class Hub(MemoryFileSystem):
    """Stands for the Hugging Face hub: its names, and the content's hash of each file."""

    protocol = "hf"
    store: dict = {}  # noqa: RUF012 - as the base class has it
    pseudo_dirs: list = [""]  # noqa: RUF012
    broken = False  # while it is listed
    fails: list = []  # noqa: RUF012 - what the next reads raise

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("hf://"))

    def info(self, path, **options):
        if self.broken:
            raise RuntimeError("503 the hub\nis tired")
        return {**super().info(path, **options), "blob_id": f"blob of {path}"}

    def find(self, path, detail=False, **options):
        found = super().find(path, detail=False, **options)
        return {name: self.info(name) for name in found} if detail else found

    def _open(self, path, *arguments, **options):
        if self.fails:
            raise self.fails.pop()
        return super()._open(path, *arguments, **options)
