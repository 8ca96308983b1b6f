"""What went wrong with a command line, in one line that names the flag or field and the remedy."""

import os
import pathlib
import re
import traceback
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags, config_path

from ratjax.config.experiment import Experiment
from ratjax.config.overrides import leaves, type_name
from ratjax.errors import ConfigError, InputError, nearest


def check_file(argv: list[str]) -> None:
    """Raises `InputError` if `--config` names no file (ml_collections would say so much later)."""
    path = _config_file(argv)
    if path is not None and not os.path.isfile(path):
        here = pathlib.Path(path).parent
        known = [str(p) for p in here.glob("*.py") if not p.name.startswith("_")]
        hint = f"; {nearest(path, known)}" if known else ""
        raise InputError(f"--config={path}: no such file{hint}")


def _config_file(argv: list[str]) -> str | None:
    for index, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            value = match[1] if match[1] is not None else next(iter(argv[index + 1 :]), "")
            return value.split(":")[0]
    return None


def explain(argv: list[str], error: Exception) -> str | None:
    """One line for the user; None where the error is none of theirs.

    Args:
      argv: the command line.
      error: what parsing it raised: absl's and ml_collections' errors, or anything that the
        experiment file raised while it was loaded.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, InputError):
            return str(link)
    path = _config_file(argv)
    for link in chain:
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if path and os.path.abspath(frame.filename) == os.path.abspath(path):
                return f"{path}:{frame.lineno}: {type(link).__name__}: {link}"
        if isinstance(link, SyntaxError) and path:
            return f"{path}:{link.lineno}: SyntaxError: {link.msg}"
    if isinstance(error, KeyError | AttributeError | IndexError):
        return _unknown_override(argv)
    if isinstance(error, flags.Error | ValueError | TypeError):
        message = str(error).splitlines()[0]
        if match := re.match(r"flag --config\.(\S+?)=(.*?): ", message):
            kinds = {leaf.name: type_name(leaf.annotation) for leaf in leaves(Experiment)}
            kind = kinds.get(match[1])
            return (
                str(ConfigError(match[1], match[2], f"must be of type {kind}")) if kind else message
            )
        if match := re.match(r"flag --(\w+)=None: .* must have a value", message):
            return f"--{match[1]} is required"
        return message
    return None


def _unknown_override(argv: list[str]) -> str | None:
    """Names the override that is no field of the configuration."""
    path = _config_file(argv)
    if path is None:
        return None
    config = config_flags.ConfigFileFlagParser("config").parse(path)
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if not match:
            continue
        holder = config
        for part in config_path.split(match[1]):
            try:
                holder = holder[part]
            except (KeyError, IndexError, TypeError):
                names = [str(k) for k in holder] if isinstance(holder, ConfigDict) else []
                hint = nearest(str(part), names) if names else f"it has {_size(holder)}"
                return f"{match[1]}: unknown field; {hint}"
    return None


def _size(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, tuple | list) else "no fields"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
