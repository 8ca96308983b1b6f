"""Finding a source: a local folder or file, or a repository on the Hugging Face hub."""

import dataclasses
import pathlib
import re

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ratjax.convert.folder import COMPANIONS, TOKENIZER
from ratjax.errors import InputError

PATTERNS = ("*.safetensors", "model.safetensors.index.json", TOKENIZER, *COMPANIONS)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a checkpoint lies on this machine.

    Attributes:
      path: a folder (Hugging Face form) or a .pth file (released RAT+).
      name: what the user called it.
      revision: the repository's commit, where one is known.
    """

    path: pathlib.Path
    name: str
    revision: str | None

    @property
    def is_pth(self) -> bool:
        return self.path.suffix == ".pth"


class NotHereError(InputError):
    """Weights that are not on this machine (and could not be, or were not to be, fetched)."""


def find(
    name: str, *, file: str | None = None, revision: str | None = None, fetch: bool = True
) -> Source:
    """Resolves `--source`; downloads what a repository id names.

    Downloads go to the hub's cache (`HF_HOME`), resume where they were cut off, and are not
    tried with `HF_HUB_OFFLINE=1`. A local path never touches the network.

    Args:
      name: a folder, a .pth file, or a repository id such as `allenai/OLMo-2-0425-1B`.
      file: a .pth file inside of it.
      revision: branch, tag or commit of a repository.
      fetch: False looks into the cache only.

    Raises:
      NotHereError: no such path, or the hub does not have it.
      InputError: several .pth files to choose from.
    """
    path = pathlib.Path(name).expanduser()
    if path.exists():
        path, commit = _pick(path, file), _commit(path)
        return Source(path, name, commit)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or name.startswith(("-", ".")):
        raise NotHereError(f"{name}: no such folder or file, and no repository id (owner/name)")
    patterns = list(PATTERNS) if file is None else [file]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=not fetch
        )
    except LocalEntryNotFoundError as error:
        raise NotHereError(
            f"{name}: not in the hub's cache, and not fetched ({_first_line(error)})"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise NotHereError(f"{name}: the hub does not give it ({_first_line(error)})") from None
    path = _pick(pathlib.Path(folder), file)
    return Source(path, name if file is None else f"{name}/{file}", _commit(pathlib.Path(folder)))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _pick(path: pathlib.Path, file: str | None) -> pathlib.Path:
    if file is not None:
        if not (path / file).is_file():
            raise InputError(f"{path}: has no file {file}")
        return path / file
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(str(p.relative_to(path)) for p in path.rglob("*.pth"))
        if len(found) == 1:
            return path / found[0]
        if found:
            raise InputError(f"{path}: name one of its files with --file: {', '.join(found)}")
        if "/" in str(path) and "snapshots" in path.parts:
            raise InputError(f"{path}: no config.json came with it; name a .pth file with --file")
    elif path.is_file() and path.suffix != ".pth":
        raise InputError(f"{path}: is a file; give its folder, or a released RAT+ .pth file")
    return path


def _commit(path: pathlib.Path) -> str | None:
    """The commit in a path inside the hub's cache, .../snapshots/<commit>/..."""
    parts = path.absolute().parts
    if "snapshots" in parts[:-1]:
        commit = parts[parts.index("snapshots") + 1]
        return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None
    return None
