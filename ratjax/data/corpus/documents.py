"""The documents of a part of a file, one after another, of whichever format."""

import codecs
import contextlib
import gzip
import io
import json
import types
import zlib
from collections.abc import Iterator
from typing import Any

from ratjax.data.corpus.files import InputFile, Part
from ratjax.data.folder import MissingDataError
from ratjax.errors import InputError, nearest

BUFFER = 1 << 20
ROWS = 256  # of a parquet file, decoded at a time


class RemoteError(MissingDataError):
    """A remote file that cannot be read, at least not now."""


def check_readers(files: list[InputFile]) -> None:
    """Raises `InputError` where a library that some of the files need is not installed."""
    if any(file.format == "parquet" for file in files):
        _pyarrow()
    if any(file.compression == ".zst" for file in files):
        _zstandard()


def documents(part: Part, field: str, separator: str | None) -> Iterator[str]:
    """The texts that begin in a part of a file; over all its parts, every one once.

    Args:
      part: what to read.
      field: of a record (JSON object or parquet row), which holds its text. Where it is null,
        the record is left out.
      separator: what parts the documents of a text file. None: all of it is one document.

    Raises:
      InputError: a damaged file, or a record without the field, with its line.
    """
    file = part.file
    with _reading(file), contextlib.closing(file.open()) as source:
        if file.format == "parquet":
            yield from _parquet(source, part, field)
        elif file.format == "json":
            yield from _json_lines(source, part, field)
        else:
            yield from _texts(_decompressed(source, file), separator)


@contextlib.contextmanager
def _reading(file: InputFile) -> Iterator[None]:
    """Errors of reading, decompressing and decoding, as one line with the file's name."""
    kinds = (OSError, EOFError, ValueError, zlib.error)
    if file.compression == ".zst":
        kinds = (*kinds, _zstandard().ZstdError)
    if file.remote:  # each protocol raises errors of its own library
        kinds = (Exception,)
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        error_type = RemoteError if file.remote else InputError
        raise error_type(f"{file.name}: not readable ({reason})") from None


def _decompressed(source: io.BufferedReader, file: InputFile) -> io.BufferedReader:
    if file.compression == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=source), BUFFER)
    if file.compression == ".zst":
        reader = _zstandard().ZstdDecompressor().stream_reader(source, read_across_frames=True)
        return io.BufferedReader(reader, BUFFER)
    return source


def _texts(source: io.BufferedReader, separator: str | None) -> Iterator[str]:
    if not separator:
        yield source.read().decode()
        return
    decoder, rest = codecs.getincrementaldecoder("utf-8")(), ""
    while chunk := source.read(BUFFER):
        *whole, rest = (rest + decoder.decode(chunk)).split(separator)
        yield from whole
    yield rest + decoder.decode(b"", final=True)


def _json_lines(source: io.BufferedReader, part: Part, field: str) -> Iterator[str]:
    """The lines that begin in the part's bytes."""
    file = part.file
    start = file.size * part.number // part.parts
    end = file.size * (part.number + 1) // part.parts if part.parts > 1 else None
    lines, position = _decompressed(source, file), 0
    if start:
        # A line that begins just at the start is this part's: its predecessor ends before it.
        source.seek(start - 1)
        position = start - 1 + len(source.readline())
    first = position
    for number, line in enumerate(lines):
        if end is not None and position >= end:
            return
        position += len(line)
        if line.isspace():
            continue
        try:
            text = _field(json.loads(line), field)
        except (ValueError, InputError) as error:  # a UnicodeDecodeError is a ValueError
            number += 1 + (_newlines_before(file, first) if first else 0)
            what = error if isinstance(error, InputError) else f"not a line of JSON ({error})"
            raise InputError(f"{file.name}:{number}: {what}") from None
        if text is not None:
            yield text


def _field(record: Any, field: str) -> str | None:
    if not isinstance(record, dict):
        raise InputError(f"must be a JSON object, is {type(record).__name__}")
    if field not in record:
        raise InputError(f"has no field {field!r}; {nearest(field, record)}")
    if not isinstance(record[field], str | None):
        raise InputError(f"field {field!r} must be text, is {type(record[field]).__name__}")
    return record[field]


def _newlines_before(file: InputFile, end: int) -> int:
    count = 0
    with contextlib.closing(file.open()) as source:
        while end > 0 and (chunk := source.read(min(end, BUFFER))):
            count += chunk.count(b"\n")
            end -= len(chunk)
    return count


def _parquet(source: io.BufferedReader, part: Part, field: str) -> Iterator[str]:
    pyarrow = _pyarrow()
    reader = pyarrow.parquet.ParquetFile(source)
    schema = reader.schema_arrow
    if field not in schema.names:
        raise InputError(
            f"{part.file.name}: has no column {field!r}; {nearest(field, schema.names)}"
        )
    kind = schema.field(field).type
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(value) or pyarrow.types.is_large_string(value)):
        raise InputError(f"{part.file.name}: column {field!r} must be text, is {kind}")
    groups = reader.num_row_groups
    mine = range(groups * part.number // part.parts, groups * (part.number + 1) // part.parts)
    for rows in reader.iter_batches(ROWS, list(mine), [field], use_threads=False):
        for text in rows.column(0).to_pylist():
            if text is not None:
                yield text


def _pyarrow() -> types.ModuleType:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(
            "parquet files need pyarrow, which is not installed: pip install 'ratjax[data]'"
        ) from None
    return pyarrow


def _zstandard() -> types.ModuleType:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise InputError(
            ".zst files need zstandard, which is not installed: pip install 'ratjax[data]'"
        ) from None
    return zstandard
