"""Compiled programs kept in files, for the launch to load instead of compiling."""

import functools
import hashlib
import json
import pathlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import serialize_executable

import ratjax
import ratjax_kernels
from ratjax.ahead import libtpu
from ratjax.config.data import DataStage
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import ModelConfig
from ratjax.config.overrides import to_json
from ratjax.config.train import TrainConfig
from ratjax.errors import InputError
from ratjax.files import write_file
from ratjax.provenance import versions

_MAGIC = b"ratjax executable 1\n"


_COMPILING = ("jax", "jaxlib", "flax", "optax")
# Fields of `train` that the step itself does not depend on.
_SHAPELESS = (
    "seed",
    "init_from",
    "log_every",
    "gate_lengths",
    "profile",
    "held_out",
    "held_out_every",
    "held_out_batches",
    "checkpoint_every",
    "keep",
    "keep_every",
    "keep_best",
    "grace_seconds",
    "max_skipped",
    "watchdog",
    "watchdog_exit",
)


def key_of(
    model: ModelConfig,
    train: TrainConfig,
    stage: DataStage,
    total_steps: int,
    mesh: MeshConfig,
    device_kind: str,
) -> dict[str, Any]:
    """What must be equal for a training step to be the one that would be compiled now.

    Args:
      model: what is trained.
      train: how.
      stage: its batches.
      total_steps: length of the schedule.
      mesh: resolved.
      device_kind: JAX's name of the devices.
    """
    key = {
        "device_kind": device_kind,
        "libtpu": libtpu.version(),
        **{name: version for name, version in versions().items() if name in _COMPILING},
        "sources": sources(),
        "mesh": to_json(mesh),
        "model": to_json(model),
        "train": {k: v for k, v in to_json(train).items() if k not in _SHAPELESS},
        "total_steps": total_steps,
        **{name: getattr(stage, name) for name in ("batch_size", "sequence_length", "recurrence")},
    }
    return json.loads(json.dumps(key))


@functools.cache
def sources() -> str:
    """A digest of this project's own code, which a compiled program is made from."""
    digest = hashlib.sha256()
    for package in (ratjax, ratjax_kernels):
        root = pathlib.Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def save(path: pathlib.Path, compiled: jax.stages.Compiled, key: Mapping[str, Any]) -> int:
    """Writes a compiled program; returns the file's bytes."""
    payload, _, _ = serialize_executable.serialize(compiled)
    head = json.dumps(key, sort_keys=True).encode()
    content = _MAGIC + head + b"\n" + payload
    write_file(path, content)
    return len(content)


def load(
    path: pathlib.Path, key: Mapping[str, Any], lower: Callable[[], jax.stages.Lowered]
) -> tuple[jax.stages.Compiled | None, str]:
    """A compiled program, if it is the one that would be compiled now.

    The file holds machine code and is unpickled: load only what you saved.

    Args:
      path: what `save` wrote.
      key: of the program that is wanted.
      lower: gives that program before it is compiled, which knows its arguments.

    Returns:
      (the program, "") or (None, why it has to be compiled, in one line).

    Raises:
      InputError: the file is missing or something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it with launch.compile_ahead") from None
    if not content.startswith(_MAGIC):
        raise InputError(f"{path}: holds no compiled program; make it with launch.compile_ahead")
    head, _, payload = content[len(_MAGIC) :].partition(b"\n")
    theirs = json.loads(head)
    changed = [name for name in sorted({*theirs, *key}) if theirs.get(name) != key.get(name)]
    if changed:
        name = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return None, (
            f"{path}: compiled for {name}={_short(theirs.get(name))}, not "
            f"{_short(key.get(name))}{more}; compiling anew"
        )
    lowered = lower()
    try:
        structures = jax.tree.structure(lowered.args_info), jax.tree.structure(lowered.out_info)
        return serialize_executable.deserialize_and_load(payload, *structures), ""
    except (jax.errors.JaxRuntimeError, pickle.UnpicklingError, ValueError) as error:
        return None, f"{path}: cannot be loaded ({str(error).splitlines()[0]}); compiling anew"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
