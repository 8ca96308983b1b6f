"""Which files a corpus consists of, here or on a remote file system, and how they are cut."""

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from ratjax.data.folder import MissingDataError, fingerprint
from ratjax.errors import InputError

JSON_LINES = (".jsonl", ".ndjson", ".json")
TEXT = (".txt", ".text")
PARQUET = ".parquet"
COMPRESSED = (".gz", ".zst")
READ_AHEAD = 1 << 22  # of a remote file


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of documents.

    Attributes:
      name: a local path, or a URL such as `hf://datasets/owner/name/file.parquet`.
      size: bytes.
      identity: another one where its content is another.
    """

    name: str
    size: int
    identity: str

    @property
    def remote(self) -> bool:
        return "://" in self.name

    @property
    def compression(self) -> str:
        """`.gz`, `.zst` or nothing."""
        suffix = pathlib.PurePosixPath(self.name).suffix
        return suffix if suffix in COMPRESSED else ""

    @property
    def format(self) -> str:
        """`parquet`, `json` or `text`; nothing where the name does not tell."""
        suffix = pathlib.PurePosixPath(self.name.removesuffix(self.compression)).suffix
        if suffix == PARQUET and not self.compression:
            return "parquet"
        return "json" if suffix in JSON_LINES else "text" if suffix in TEXT else ""

    def open(self) -> io.BufferedReader:
        """The bytes as they lie there, seekable."""
        if not self.remote:
            return open(self.name, "rb")
        system, path = url_to_fs(self.name)
        return io.BufferedReader(system.open(path, "rb"), READ_AHEAD)


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several nearly equal parts of a file, numbered from 0."""

    file: InputFile
    number: int
    parts: int

    @property
    def size(self) -> int:
        size, parts = self.file.size, self.parts
        return size * (self.number + 1) // parts - size * self.number // parts


def expand(names: Iterable[str]) -> list[InputFile]:
    """The files that names stand for: files, patterns with `*`, and folders with all in them.

    Names that begin with a protocol (`hf://`) are looked up there. Of a folder, files whose
    ending tells no format are left out, and hidden ones.

    Returns:
      The files of each name in turn, sorted by their own names.

    Raises:
      MissingDataError: a name that stands for nothing, or that cannot be looked up now.
      InputError: a file of an unknown format, or one named twice.
    """
    found = [file for name in names for file in _expand(name)]
    seen = set()
    for file in found:
        if not file.format:
            raise InputError(
                f"{file.name}: unknown format; must end in {PARQUET}, or in one of "
                f"{', '.join(JSON_LINES + TEXT)} with or without {' or '.join(COMPRESSED)}"
            )
        if file.name in seen:
            raise InputError(f"{file.name}: named twice among the sources")
        seen.add(file.name)
    return found


def _expand(name: str) -> list[InputFile]:
    try:
        system, path = url_to_fs(name if "://" in name else str(pathlib.Path(name).expanduser()))
        info = _info(system, path)
        if info is None and any(sign in path for sign in "*?["):
            listed = system.glob(path, detail=True)
            found = [info for info in listed.values() if info["type"] == "file"]
        elif info is None:
            found = []
        elif info["type"] == "directory":
            listed = system.find(path, detail=True)
            found = [
                info
                for where, info in listed.items()
                if InputFile(where, 0, "").format
                and not any(part.startswith(".") for part in where[len(path) :].split("/"))
            ]
        else:
            found = [info]
    except Exception as error:  # each protocol raises errors of its own library
        if "://" not in name and not isinstance(error, OSError):
            raise
        raise MissingDataError(f"{name}: cannot be listed ({_first_line(error)})") from None
    if not found:
        raise MissingDataError(
            f"{name}: no such file, no file of that pattern, or a folder without {PARQUET}, "
            f"{', '.join(JSON_LINES + TEXT)} files"
        )
    protocol = name.split("://")[0] + "://" if "://" in name else ""
    files = [_input_file(protocol, info) for info in found]
    return sorted(files, key=lambda file: file.name)


def _info(system: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    # `exists` and `isdir` would take an unreachable host for a missing file.
    try:
        return system.info(path)
    except FileNotFoundError:
        return None


def _input_file(protocol: str, info: dict[str, Any]) -> InputFile:
    name, size = info["name"], int(info["size"])
    if not protocol:
        return InputFile(name, size, fingerprint(pathlib.Path(name)))
    tags = (
        str(info[key])
        for key in ("blob_id", "xet_hash", "etag", "ETag", "md5Hash")
        if info.get(key)
    )
    return InputFile(protocol + name, size, next(tags, str(size)))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def plan_shards(files: Sequence[InputFile], shard_bytes: int) -> list[tuple[Part, ...]]:
    """Cuts large files and joins small ones, so that each shard reads about as many bytes.

    It depends on nothing but the files and their sizes, so that shard n is always the same.

    Args:
      files: in order.
      shard_bytes: of input, for one shard. What cannot be cut (compressed files, texts) may
        have more.
    """
    shards, open_shard, size = [], [], 0
    for file in files:
        whole = bool(file.compression) or file.format == "text"
        parts = 1 if whole else max(1, -(-file.size // shard_bytes))
        for number in range(parts):
            part = Part(file, number, parts)
            if open_shard and size + part.size > shard_bytes:
                shards.append(tuple(open_shard))
                open_shard, size = [], 0
            open_shard.append(part)
            size += part.size
    if open_shard:
        shards.append(tuple(open_shard))
    return shards
