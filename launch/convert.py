"""Converts published checkpoints into model folders, and model folders back.

    python -m launch.convert --source=allenai/OLMo-2-0425-1B --target=models/olmo2-1b
    python -m launch.convert --source=ratplus-7b.pth --target=models/ratplus-7b
    python -m launch.convert --export --source=models/olmo2-1b --target=exported/olmo2-1b

The target appears when it is complete, and not before. On a pod, run the same command with
--distributed on every host, with a target that all hosts see.
"""

import pathlib
import signal

import jax
import numpy as np
from absl import flags, logging

from launch import command
from ratjax.convert import convert, export, plan
from ratjax.convert.memory import CHOICES
from ratjax.convert.source import NotHereError, find
from ratjax.convert.write import check_target, leftovers
from ratjax.errors import InputError

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "OLMo2: a folder with config.json and safetensors. Released RAT+: a .pth file, or a folder "
    "with one. Either: a Hugging Face repository id, which is downloaded. With --export: a model "
    "folder of this project.",
)
_TARGET = flags.DEFINE_string("target", None, "Folder to write; must not exist, or be empty.")
_EXPORT = flags.DEFINE_bool("export", False, "Write a Hugging Face folder from a model folder.")
_MEMORY = flags.DEFINE_enum(
    "add_memory",
    None,
    CHOICES,
    "Adds a memory. identity: g = 0, outputs unchanged, not trainable; near_identity: zero "
    "matrix, bias --memory_bias; ratplus: N(0, 0.02^2) without bias, g starts at 0.5.",
)
_BIAS = flags.DEFINE_float(
    "memory_bias", -6.0, "The gate's bias under --add_memory=near_identity; g = sigmoid of it."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the matrix under --add_memory=ratplus.", lower_bound=0)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ("float32", "bfloat16"), "How weights are stored. Unset: as in the source."
)
_FILE = flags.DEFINE_string("file", None, "A .pth file inside of --source.")
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a repository.")
_HEAD_DIM = flags.DEFINE_integer(
    "head_dim", None, "Channels of a head, for .pth files that do not tell. Unset: 128."
)
_STEP = flags.DEFINE_integer("step", None, "With --export: which checkpoint. Unset: the newest.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Share the reading among all hosts of a pod; start it on each of them."
)
command.define_dry_run()
flags.adopt_module_key_flags(command)

_ONLY_IMPORT = ("add_memory", "file", "revision", "head_dim", "distributed")


def main() -> int:
    for flag in (_SOURCE, _TARGET):
        if not flag.value:
            raise InputError(f"{flag.name}={flag.value!r}: give --{flag.name}=<path>")
    if command.FLAGS.verbosity == logging.WARNING:  # what Orbax logs as an error it also raises
        logging.set_verbosity(logging.FATAL)
    # A polite kill cleans up behind itself, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    target = pathlib.Path(_TARGET.value)
    for left in leftovers(target):
        command.warn(f"{left}: left by a conversion that was killed, unless one still runs")
    try:
        return _export(target) if _EXPORT.value else _convert(target)
    except KeyboardInterrupt:
        return command.fail(f"interrupted: {target} was not written", command.INTERRUPTED)
    except OSError as error:
        raise InputError(f"{error.filename or target}: {error.strerror or error}") from None


def _interrupt() -> None:
    raise KeyboardInterrupt


def _export(target: pathlib.Path) -> int:
    for name in _ONLY_IMPORT:
        if command.FLAGS[name].present:
            raise InputError(f"{name}={command.FLAGS[name].value!r}: not used with --export")
    if command.FLAGS.dry_run:
        from ratjax.model.inspect import inspect

        try:
            found = inspect(_SOURCE.value, _STEP.value)
        except InputError as error:
            command.warn(error)
            command.conclude({"parameters": None})
            return 0
        check_target(target, 0)
        print(f"{_SOURCE.value} -> {target}: Hugging Face OLMo2, {found.size:,} parameters")
        command.conclude({"parameters": found.size, "step": found.step})
        return 0
    export(_SOURCE.value, target, dtype=_DTYPE.value, step=_STEP.value)
    print(f"{target}: written")
    return 0


def _convert(target: pathlib.Path) -> int:
    if _STEP.present:
        raise InputError(f"step={_STEP.value}: only used with --export")
    dry = command.FLAGS.dry_run
    if _DISTRIBUTED.value and not dry:
        jax.distributed.initialize()
    check_target(target, 0)  # before a long download
    try:
        source = find(_SOURCE.value, file=_FILE.value, revision=_REVISION.value, fetch=not dry)
    except NotHereError as error:
        if not dry:
            raise
        command.warn(error)
        command.conclude({"parameters": None})
        return 0
    planned = plan(
        source,
        add_memory=_MEMORY.value,
        memory_bias=_BIAS.value,
        seed=_SEED.value,
        dtype=_DTYPE.value,
        head_dim=_HEAD_DIM.value,
    )
    if planned.tokenizer is None:
        command.warn(f"{source.path}: has no tokenizer.json; the model is converted without one")
    if dry:
        check_target(target, planned.nbytes)
        print(f"{source.name} -> {target}: {planned.model}")
        command.conclude({"parameters": planned.parameters, "bytes": planned.nbytes})
        return 0
    mesh = None
    if _DISTRIBUTED.value:
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    convert(target, planned, mesh=mesh, tell=lambda line: print(line, flush=True))
    print(f"{target}: written; ratjax.load({str(target)!r}) reads it")
    return 0


if __name__ == "__main__":
    command.run(main)
