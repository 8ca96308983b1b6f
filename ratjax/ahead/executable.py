"""Compiled programs kept in files, for the launch to load instead of compiling."""

import functools
import hashlib
import json
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import serialize_executable

import ratjax
import ratjax_kernels
from ratjax.ahead import libtpu
from ratjax.errors import InputError
from ratjax.files import write_file
from ratjax.provenance import versions

_MAGIC = b"ratjax executable 1\n"


def key_of(
    program: str, configs: Mapping[str, Any], device_kind: str, devices: int
) -> dict[str, Any]:
    """What must be equal for a compiled program to be the one that would be compiled now.

    Args:
      program: `train`, `prefill` or `decode`.
      configs: everything that shapes the program, as JSON types.
      device_kind: JAX's name of the devices.
      devices: how many.
    """
    return {
        "program": program,
        "device_kind": device_kind,
        "devices": devices,
        "libtpu": libtpu.version(),
        **{name: version for name, version in versions().items() if name in _COMPILING},
        "sources": sources(),
        **json.loads(json.dumps(configs)),
    }


_COMPILING = ("jax", "jaxlib", "flax", "optax")


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
    path: pathlib.Path, key: Mapping[str, Any], lowered: jax.stages.Lowered
) -> tuple[jax.stages.Compiled | None, str]:
    """A compiled program, if it is the one that would be compiled now.

    The file holds machine code and is unpickled: load only what you saved.

    Args:
      path: what `save` wrote.
      key: of the program that is wanted.
      lowered: that program before it is compiled, which knows its arguments.

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
    try:
        structures = jax.tree.structure(lowered.args_info), jax.tree.structure(lowered.out_info)
        return serialize_executable.deserialize_and_load(payload, *structures), ""
    except (jax.errors.JaxRuntimeError, pickle.UnpicklingError, ValueError) as error:
        return None, f"{path}: cannot be loaded ({str(error).splitlines()[0]}); compiling anew"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
