"""Writing all or nothing, and reading JSON with errors that a user can act on."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from ratjax.errors import InputError

# A folder here, or in a bucket (gs://...), which `pathlib` has no notion of.
Folder = pathlib.Path | epath.Path


def as_folder(path: str | os.PathLike) -> Folder:
    """The path as an object that can be read and written: `pathlib`'s, or etils' for a bucket.

    Raises:
      InputError: a URL other than gs://...
    """
    text = os.fspath(path)
    if "://" not in text:
        return pathlib.Path(path)
    if not text.startswith("gs://"):
        raise InputError(f"{text}: neither a folder nor a bucket (gs://...)")
    return epath.Path(path)


def absolute(path: Folder) -> Folder:
    """The path from the root on; a bucket's is so already."""
    return path if is_remote(path) else path.absolute()


def is_remote(path: Folder) -> bool:
    """Whether a path is in a bucket, where what is written appears whole, and under its name."""
    return "://" in os.fspath(path)


def check_new_folder(folder: str | os.PathLike) -> None:
    """Raises `InputError` where something is at `folder` already, but for an empty folder."""
    target = pathlib.Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{folder}: exists and is not empty; remove it or choose another name")


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary folder that takes the name `folder` if the block succeeds, and else vanishes.

    Raises:
      InputError: `folder` exists and is not empty.
    """
    check_new_folder(folder)
    target = pathlib.Path(folder).absolute()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:  # an interrupt can come as soon as the folder is there
        part.mkdir(parents=True)
        yield part
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def lock(descriptor: int, said: str) -> None:
    """Locks an open file or folder. The system lifts the lock when this process ends in any way.

    Where a file system has no locks, nothing is locked.

    Raises:
      InputError: `said`, where another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(said) from None
    except OSError:
        pass


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a folder that is there.

    Raises:
      InputError: one is in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, f"{folder}: another process is at work on it; wait for it, or end it")
        yield
    finally:
        os.close(descriptor)


def write_file(path: Folder, content: str | bytes) -> None:
    """Replaces a file's whole content at once, so that no reader ever sees half of it."""
    content = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)


def write_json(path: Folder, value: Any) -> None:
    """Writes indented JSON, at once."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Folder) -> dict[str, Any]:
    """A JSON object.

    Raises:
      FileNotFoundError: no such file.
      InputError: its content is something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return value
