"""What every command shares: flags, one-line errors, the compilation cache, dry runs.

A command defines its flags with the functions below, and ends with `command.run(main)`.
Bad input, wherever it is found, ends as one line `error: ...` on stderr and exit status 2;
a traceback means a defect.
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from ratjax.config.experiment import Experiment
from ratjax.config.overrides import from_mapping, leaves, type_name
from ratjax.errors import ConfigError, InputError, nearest

FLAGS = flags.FLAGS


def define_config() -> None:
    """Defines `--config`, and with it `--config.<field>=` for every field of an experiment."""
    if "config" not in FLAGS:
        config_flags.DEFINE_config_file(
            "config", None, f"An experiment file. {_field_help()}", lock_config=False
        )
        flags.mark_flag_as_required("config")


def define_workdir(help_text: str) -> None:
    """Defines `--workdir`."""
    if "workdir" not in FLAGS:
        flags.DEFINE_string("workdir", None, help_text)
        flags.mark_flag_as_required("workdir")


def define_dry_run() -> None:
    """Defines `--dry_run`."""
    if "dry_run" not in FLAGS:
        flags.DEFINE_bool(
            "dry_run",
            False,
            "Validate everything, print what would run, and end with one JSON line. Data or "
            "weights that are not there are warnings.",
        )


def experiment() -> Experiment:
    """The experiment that `--config` and its overrides name, validated."""
    config = FLAGS.config
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{FLAGS['config'].config_filename}: get_config() must return a ConfigDict; wrap the "
            "experiment in ratjax.config.overrides.to_config_dict"
        )
    return from_mapping(Experiment, config)


def run(main: Callable[[], int | None]) -> None:
    """Parses the command line, calls `main`, and exits with what it returns (None: 0)."""
    app.run(lambda rest: guarded(main, rest), flags_parser=parse)


def guarded(main: Callable[[], int | None], rest: list[str]) -> int:
    """Calls `main`; turns `InputError` into one line and status 2."""
    try:
        if rest[1:]:
            raise InputError(f"unexpected argument {rest[1]!r}; flags begin with --")
        use_compilation_cache()
        return main() or 0
    except InputError as error:
        return fail(error)


def fail(error: Exception | str, status: int = 2) -> int:
    """Prints one line on stderr and returns `status`."""
    print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    return status


def warn(problem: Exception | str) -> None:
    """Prints one warning line on stderr."""
    print("warning:", " ".join(str(problem).split()), file=sys.stderr, flush=True)


def conclude(summary: dict[str, Any]) -> None:
    """The last line of a dry run: one JSON object."""
    print(json.dumps(summary), flush=True)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next run starts at once.

    In `JAX_COMPILATION_CACHE_DIR`, or else in `~/.cache/ratjax/xla`; it may be deleted at any
    time. Even quick compilations are kept: small models have many of them.
    """
    if not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path.home() / ".cache" / "ratjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def resolve(reference: str) -> Callable[..., Any]:
    """The function that "module:name" refers to.

    Raises:
      InputError: no such module, or no such function in it.
    """
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{reference}: {error}") from None
    if not callable(getattr(module, name, None)):
        known = [n for n, value in vars(module).items() if callable(value)]
        raise InputError(f"{reference}: no such function; {nearest(name, known)}")
    return getattr(module, name)


def revision() -> str | None:
    """The checkout's git revision, with "+changes" where it is not clean; None without git."""
    root = pathlib.Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def parse(argv: list[str]) -> list[str]:
    """`FLAGS(argv)`, with every way in which that can fail reduced to one line."""
    try:
        if "config" in FLAGS:
            _check_file(argv)
        rest = FLAGS(argv)
    except SystemExit:  # a help flag, which absl ends with status 1
        sys.exit(0)
    except Exception as error:
        message = _explain(argv, error)
        if message is None:
            raise
        sys.exit(fail(message))
    if FLAGS["verbosity"].using_default_value:
        FLAGS.verbosity = logging.WARNING  # absl would go on to choose INFO
    return rest


def _check_file(argv: list[str]) -> None:
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


def _explain(argv: list[str], error: Exception) -> str | None:
    """One line for the user; None where the error is none of theirs."""
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
    config = FLAGS["config"].value if FLAGS["config"].present else None
    if config is None:
        config = config_flags.config_flags.ConfigFileFlagParser("config").parse(_config_file(argv))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if not match:
            continue
        holder, path = config, ""
        for part in config_path.split(match[1]):
            try:
                holder = holder[part]
            except (KeyError, IndexError, TypeError):
                names = [str(k) for k in holder] if isinstance(holder, ConfigDict) else []
                hint = nearest(str(part), names) if names else f"it has {_size(holder)}"
                return f"{match[1]}: unknown field; {hint}"
            path = f"{path}.{part}"
    return None


def _size(value: Any) -> str:
    return f"{len(value)} items" if isinstance(value, tuple | list) else "no fields"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _field_help() -> str:
    lines = ["Any field can be set as --config.<field>=<value>. The fields, and their defaults:"]
    for field in leaves(Experiment):
        if field.name.startswith("model.memory."):
            continue  # an experiment's memory is its own field
        default = "" if isinstance(field.value, type) else f" = {field.value!r}"
        if "MISSING" in default:
            default = ""
        lines.append(f"{field.name} ({type_name(field.annotation)}){default}: {field.doc}")
    return "\n".join(lines)
