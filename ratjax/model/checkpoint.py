"""Model folders: what this project writes a model as, and reads it back from.

    model.json              the ModelConfig, versions, and where the model came from
    tokenizer.json          the tokenizer it was trained with
    huggingface/            config and tokenizer files of a converted model, kept for exporting
    checkpoints/<step>/     Orbax: `params`, and beside it what training alone needs;
                            files.json names every file with its size

Parameters are read without any knowledge of the optimizer that lies beside them.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tokenizers
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from ratjax.config.model import ModelConfig
from ratjax.config.overrides import from_mapping, to_json
from ratjax.errors import ConfigError, InputError
from ratjax.files import (
    Folder,
    absolute,
    as_folder,
    is_remote,
    new_folder,
    read_json,
    write_file,
    write_json,
)
from ratjax.model.apart import pays
from ratjax.model.decoder import Decoder
from ratjax.model.parameters import (
    AbstractParameters,
    Parameters,
    inference_dtypes,
    to_model,
    to_parameters,
)
from ratjax.model.placement import placed_parameters
from ratjax.provenance import versions

MODEL, TOKENIZER, CHECKPOINTS, PARAMS = "model.json", "tokenizer.json", "checkpoints", "params"
HUGGINGFACE, SEAL = "huggingface", "files.json"

Result = TypeVar("Result")


def load_model(
    path: str | os.PathLike,
    dtype: str | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    inference: bool = False,
) -> Decoder:
    """Loads a model that this project wrote.

    Args:
      path: a model folder, or one of its `checkpoints/<step>` folders.
      dtype: the compute dtype, in place of the one in `model.json`; parameters stay float32.
      step: which checkpoint; None takes the newest.
      mesh: what its parameters are spread over, each device reading its part alone; None puts
        them on the first device.
      inference: parameters are held in the compute dtype too (`parameters.inference_dtypes`),
        and on a GPU in one array a layer (`apart`).

    Raises:
      InputError: nothing there, an unknown field in `model.json`, a checkpoint that is missing
        or truncated or belongs to another model, a tokenizer larger than the vocabulary.
    """
    folder, step = locate(as_folder(path), step)
    config = read_config(folder)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    if (folder / TOKENIZER).exists():
        check_tokenizer(folder / TOKENIZER, config)
    step = newest_step(folder) if step is None else step
    wanted = placed_parameters(config, mesh)
    if inference:
        dtypes = inference_dtypes(config)
        wanted = {name: array.update(dtype=dtypes[name]) for name, array in wanted.items()}
    model = to_model(config, read_parameters(folder, step, wanted))
    return model.apart() if inference and pays(mesh) else model


def save_model(
    path: str | os.PathLike,
    model: Decoder,
    tokenizer_file: str | os.PathLike | None,
    provenance: Mapping[str, Any],
) -> None:
    """Writes a model folder with one checkpoint, step 0; all or nothing.

    Args:
      path: the folder; must not exist yet, or be empty.
      model: its parameters and config.
      tokenizer_file: a `tokenizer.json` to copy in, or None.
      provenance: where the model came from, as JSON types.

    Raises:
      InputError: the folder is not empty, or the tokenizer does not fit the model.
    """
    with new_folder(path) as part:
        write_card(part, model.config, tokenizer_file, provenance)
        target = part / CHECKPOINTS / "0"
        ocp.save_checkpointables(target, {PARAMS: to_parameters(model)})
        seal(target)


def write_card(
    folder: Folder,
    config: ModelConfig,
    tokenizer_file: str | os.PathLike | None,
    provenance: Mapping[str, Any],
) -> None:
    """Writes `model.json` and copies the tokenizer.

    Raises:
      InputError: the tokenizer is missing, unreadable, or larger than the model's vocabulary.
    """
    if tokenizer_file is not None:
        check_tokenizer(as_folder(tokenizer_file), config)
        write_file(folder / TOKENIZER, as_folder(tokenizer_file).read_bytes())
    card = {
        "model": to_json(config),
        "versions": versions(("ratjax", "jax", "flax", "orbax-checkpoint")),
        "provenance": dict(provenance),
    }
    write_json(folder / MODEL, card)


def read_config(folder: Folder) -> ModelConfig:
    """The configuration in a folder's `model.json`.

    Raises:
      InputError: it is missing, damaged, or has fields that this version does not know.
    """
    path = folder / MODEL
    try:
        return from_mapping(ModelConfig, read_json(path)["model"])
    except FileNotFoundError:
        raise InputError(f"{folder}: no model here (no {MODEL} in it)") from None
    except (KeyError, TypeError):
        raise InputError(f"{path}: has no field 'model' with a model's fields") from None
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def check_tokenizer(path: Folder, config: ModelConfig) -> None:
    """Raises `InputError` unless `path` is a tokenizer whose tokens the model knows."""
    try:
        vocabulary = tokenizers.Tokenizer.from_str(path.read_text("utf-8")).get_vocab()
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: not readable as a tokenizer ({error})") from None
    size = 1 + max(vocabulary.values(), default=-1)  # identifiers may have gaps
    if size > config.vocab_size:
        raise ConfigError(
            "model.vocab_size", config.vocab_size, f"is less than the {size} tokens of {path}"
        )


def steps(folder: Folder) -> list[int]:
    """The steps that a model folder has checkpoints of, oldest first."""
    root = folder / CHECKPOINTS
    found = root.iterdir() if root.is_dir() else ()
    return sorted(int(e.name) for e in found if e.name.isdecimal() and e.is_dir() and _whole(e))


def _whole(checkpoint: Folder) -> bool:
    """Whether Orbax came to the end of it, where it renames a folder, and marks one in a bucket."""
    return not is_remote(checkpoint) or (checkpoint / "commit_success.txt").exists()


def newest_step(folder: Folder) -> int:
    """The last of `steps`; raises `InputError` where there are none."""
    found = steps(folder)
    if not found:
        raise InputError(f"{folder}: has no checkpoint yet (nothing in {CHECKPOINTS}/)")
    return found[-1]


def read_parameters(
    folder: Folder,
    step: int,
    wanted: AbstractParameters,
    optional: frozenset[str] = frozenset(),
) -> Parameters:
    """Reads parameters by name.

    Args:
      folder: a model folder.
      step: which of its checkpoints.
      wanted: shapes and dtypes, and where every array goes. Always explicit: else Orbax would
        look for the devices that the model was saved from.
      optional: names that may be absent; they are left out of the result then.

    Raises:
      InputError: the checkpoint is missing or damaged, or its arrays are not the wanted ones.
    """
    path = absolute(folder / CHECKPOINTS / str(step))
    if not path.is_dir():
        known = ", ".join(map(str, steps(folder))) or "none"
        raise InputError(f"{path}: no such checkpoint; steps there: {known}")
    stored = read_or_fail(path, lambda: _shapes(path))
    wanted = {n: a for n, a in wanted.items() if n in stored or n not in optional}
    shapes = {name: array.shape for name, array in wanted.items()}
    if stored != shapes:
        name = min(n for n in {*stored, *shapes} if stored.get(n) != shapes.get(n))
        raise InputError(
            f"{path}: not a checkpoint of this model: {name} has shape {stored.get(name)} there, "
            f"{shapes.get(name)} by the model's config"
        )
    return read_or_fail(path, lambda: ocp.load_checkpointables(path, {PARAMS: wanted})[PARAMS])


def seal(path: Folder) -> None:
    """Notes every file of a finished checkpoint with its size, for `check_seal`.

    Not in a bucket: there a file is whole or absent, and an absent one is noticed.
    """
    if is_remote(path):
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != SEAL)
    write_json(path / SEAL, {str(f.relative_to(path)): f.stat().st_size for f in files})


def check_seal(path: Folder) -> None:
    """Raises `InputError` if a file of a sealed checkpoint is missing or of another size.

    Orbax itself notices some truncations late and at length, and some not at all. A checkpoint
    without a seal (its writer died within a moment of finishing it; a bucket) passes.
    """
    if is_remote(path):
        return
    try:
        sizes = read_json(path / SEAL)
    except FileNotFoundError:
        return
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes of {size}"
            raise InputError(f"{path}: damaged: {name} {what}")


def read_or_fail(path: Folder, read: Callable[[], Result]) -> Result:
    """Calls `read`; whatever an unreadable checkpoint makes it raise becomes an `InputError`."""
    check_seal(path)
    try:
        return read()
    except Exception as error:  # Orbax, TensorStore and JSON each raise their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise InputError(f"{path}: damaged: cannot be read ({reason})") from error


def _shapes(path: Folder) -> dict[str, tuple[int, ...]]:
    metadata = ocp.checkpointables_metadata(path).metadata
    return {name: tuple(array.shape) for name, array in metadata[PARAMS].items()}


def locate(path: Folder, step: int | None) -> tuple[Folder, int | None]:
    """(model folder, step or None) from either kind of path."""
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    if path.name.isdecimal() and absolute(path).parent.name == CHECKPOINTS:
        return absolute(path).parent.parent, int(path.name)
    return path, step
