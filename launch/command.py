"""What every command shares: flags, one-line errors, the compilation cache, dry runs.

A command defines its flags with the functions below, and ends with `command.run(main)`.
Bad input, wherever it is found, ends as one line `error: ...` on stderr and exit status 2, an
interrupt (Ctrl-C) as one and status 130; a traceback means a defect.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from launch.explain import check_file, explain
from ratjax.config.experiment import Experiment
from ratjax.config.overrides import from_mapping, leaves, type_name
from ratjax.errors import InputError, nearest

FLAGS = flags.FLAGS
INTERRUPTED = 130  # the status of a command that Ctrl-C ended, as a shell would give it


def define_config() -> None:
    """Defines `--config`, and with it `--config.<field>=` for every field of an experiment."""
    if "config" not in FLAGS:
        config_flags.DEFINE_config_file(
            "config",
            None,
            f"An experiment file. {_field_help()}",
            flag_values=FLAGS,
            lock_config=False,
        )
        flags.mark_flag_as_required("config", FLAGS)


def define_workdir(help_text: str) -> None:
    """Defines `--workdir`."""
    if "workdir" not in FLAGS:
        flags.DEFINE_string("workdir", None, help_text, FLAGS)
        flags.mark_flag_as_required("workdir", FLAGS)


def define_dry_run() -> None:
    """Defines `--dry_run`."""
    if "dry_run" not in FLAGS:
        flags.DEFINE_bool(
            "dry_run",
            False,
            "Validate everything, print what would run, and end with one JSON line. Data or "
            "weights that are not there are warnings.",
            FLAGS,
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


def run(main: Callable[[], int | None], interrupted: str = "interrupted") -> None:
    """Parses the command line, calls `main`, and exits with what it returns (None: 0).

    Ctrl-C ends it with the line `interrupted` and status 130.
    """
    with contextlib.suppress(KeyboardInterrupt):
        app.run(lambda rest: guarded(main, rest), flags_parser=parse)
    gc.collect()  # what the interrupted functions held: shared memory has to be given back
    # At once: XLA, amid what it was at, may crash as the interpreter ends.
    _exit(fail(interrupted, INTERRUPTED))


def guarded(main: Callable[[], int | None], rest: list[str]) -> int:
    """Calls `main`; turns `InputError` into one line and status 2."""
    try:
        if rest[1:]:
            raise InputError(f"unexpected argument {rest[1]!r}; flags begin with --")
        use_compilation_cache()
        return main() or 0
    except InputError as error:
        return leave(fail(error))


def leave(status: int) -> int:
    """Ends this process now if it is one of several; alone, returns `status`.

    JAX would wait for the others at the end, and these for this one, until heartbeats time out.
    """
    if jax.distributed.is_initialized():
        _exit(status)
    return status


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


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
    """What the environment calls the code's revision, or else git; None without either.

    "+changes" says that the checkout is not clean. A copy of the code (on a pod's machines, in a
    container) may have no git, or that of another revision: there RATJAX_REVISION tells.
    """
    if given := os.environ.get("RATJAX_REVISION"):
        return given
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
            check_file(argv)
        rest = FLAGS(argv)
    except SystemExit:  # a help flag, which absl ends with status 1
        sys.exit(0)
    except Exception as error:
        message = explain(argv, error)
        if message is None:
            raise
        sys.exit(fail(message))
    if "verbosity" in FLAGS and FLAGS["verbosity"].using_default_value:
        FLAGS.verbosity = logging.WARNING  # absl would go on to choose INFO
    return rest


def _field_help() -> str:
    lines = ["Any field can be set as --config.<field>=<value>. The fields, and their defaults:"]
    for field in leaves(Experiment):
        if field.name.startswith("model.memory."):
            continue  # an experiment's memory is its own field
        default = "" if field.value is dataclasses.MISSING else f" = {field.value!r}"
        lines.append(f"{field.name} ({type_name(field.annotation)}){default}: {field.doc}")
    return "\n".join(lines)
