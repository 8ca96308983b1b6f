"""What an evaluation has found so far, on disk: killed at any moment, it goes on from there.

A journal is a file of JSON lines that only grows: a `begin` line a backbone, which says what is
evaluated, then a line a prompt and setting, in the order in which they were answered. A batch's
lines are on disk before the next batch starts. A line that a kill cut short is dropped with a
warning, and its batch is answered again.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ratjax.config.overrides import changes
from ratjax.errors import InputError
from ratjax.files import lock

Line = dict[str, Any]


class Journal:
    """An open journal. Lines of earlier runs come from `lines`.

    Args:
      path: the file; made, with its folder, at the first line.
      warn: called with one line where the file's end had to be mended.

    Raises:
      InputError: another process writes to it.
    """

    def __init__(self, path: str | os.PathLike, warn: Callable[[str], None] = lambda _: None):
        self.path = pathlib.Path(path)
        self.lines: list[Line] = []
        self._file = None
        if self.path.exists():
            self._open()
            self._mend(warn)

    def begin(self, backbone: str, identity: Mapping[str, Any]) -> list[Line]:
        """Starts a backbone, or continues it; returns the lines that it has already.

        Args:
          backbone: its label.
          identity: everything that its lines depend on, as JSON types.

        Raises:
          InputError: the journal holds lines that depend on something else.
        """
        identity = json.loads(json.dumps(identity))
        for line in self.lines:
            if line.get("begin") != backbone:
                continue
            found = next(changes(line["identity"], identity), None)
            if found is not None:
                field, old, new = found
                raise InputError(
                    f"{self.path}: holds an unfinished evaluation of {backbone} with {field}="
                    f"{_brief(old)}, not {_brief(new)}; evaluate into another folder, or remove "
                    "this file to start afresh"
                )
            return [one for one in self.lines if one.get("backbone") == backbone]
        self.add([{"begin": backbone, "identity": identity}])
        return []

    def add(self, lines: Iterable[Line]) -> None:
        """Appends lines, and returns when they are on disk."""
        lines = list(lines)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines += lines

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Deletes the file: the evaluation is finished and its results are written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        self._file = self.path.open("ab")
        try:
            lock(
                self._file.fileno(),
                f"{self.path}: another evaluation is writing to it; wait for it, or evaluate into "
                "another folder",
            )
        except InputError:
            self.close()
            raise

    def _mend(self, warn: Callable[[str], None]) -> None:
        content = self.path.read_bytes()
        good = 0
        for raw in content.splitlines(keepends=True):
            line = _parse(raw)
            if line is None:
                break
            self.lines.append(line)
            good += len(raw)
        if good < len(content):
            self._file.truncate(good)
            warn(
                f"{self.path}: its last {len(content) - good} bytes were no whole lines (a run was "
                "killed while writing) and are dropped; what they held is evaluated again"
            )


def in_first_process(read: Callable[[], list[Line]]) -> list[Line]:
    """What `read` returns in the first process, in all of them: it alone has the journal.

    Raises:
      InputError: in all of them, where `read` does.
    """
    if jax.process_count() == 1:
        return read()
    text, error = b"", InputError("the first process cannot go on; it says why")
    length = 0
    if jax.process_index() == 0:
        try:
            text = json.dumps(read()).encode()
            length = len(text)
        except InputError as found:
            error, length = found, -1
    length = int(multihost_utils.broadcast_one_to_all(np.int32(length)))
    if length < 0:
        raise error
    content = np.zeros(length, np.uint8)
    content[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(content).tobytes())


def _parse(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
