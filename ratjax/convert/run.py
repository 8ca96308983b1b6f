"""From a published checkpoint to a model folder of this project."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tokenizers
from jax.sharding import Mesh

from ratjax.config.model import ModelConfig
from ratjax.convert import folder, olmo2, ratplus
from ratjax.convert.layout import Index, Layout, check
from ratjax.convert.memory import added, memory_config
from ratjax.convert.safetensors_file import read_header
from ratjax.convert.source import Source, find
from ratjax.convert.tensors import Tensors
from ratjax.convert.write import Part, check_target, new_shared_folder, write_parameters
from ratjax.errors import ConfigError, InputError, check_choice
from ratjax.files import write_file
from ratjax.model.checkpoint import CHECKPOINTS, HUGGINGFACE, check_tokenizer, seal, write_card
from ratjax.model.parameters import abstract_parameters

STORED = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion that has been checked and not begun.

    Attributes:
      source: where the weights are.
      model: what they make.
      parts: every parameter, not read yet.
      tokenizer: its file, or None.
      provenance: what model.json will say of the origin.
    """

    source: Source
    model: ModelConfig
    parts: dict[str, Part]
    tokenizer: pathlib.Path | None
    provenance: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(part.shape, dtype=np.int64)) for part in self.parts.values())


def plan(
    source: Source | str,
    *,
    add_memory: str | None = None,
    memory_bias: float = -6.0,
    seed: int = 0,
    dtype: str | None = None,
    head_dim: int | None = None,
) -> Plan:
    """Reads a source's headers and checks them against its config.

    Args:
      source: a folder, a .pth file or a repository id; or what `find` made of one.
      add_memory: adds a memory: `identity`, `near_identity` or `ratplus`.
      memory_bias: the gate's bias under `near_identity`.
      seed: of the gate's matrix under `ratplus`.
      dtype: what weights are stored as, `float32` or `bfloat16`; None: as in the source.
      head_dim: of a RAT+ file that does not tell it; None: 128.

    Raises:
      InputError: anything about the source that does not fit, named.
    """
    if dtype is not None:
        check_choice("dtype", dtype, STORED)
    source = find(source) if isinstance(source, str) else source
    model, parts = (_ratplus if source.is_pth else _olmo2)(source, head_dim)
    if dtype is not None:
        parts = {name: _cast(part, STORED[dtype]) for name, part in parts.items()}
    if add_memory is not None:
        if model.memory is not None:
            raise InputError(f"{source.name}: has a memory already; leave add_memory out")
        model = dataclasses.replace(model, memory=memory_config(add_memory, model, memory_bias))
        for name, (shape, read) in added(model, seed).items():
            parts[name] = Part(shape, np.dtype(np.float32), read)
    if parts["blocks/attention/w_q"].dtype == STORED["bfloat16"]:
        model = dataclasses.replace(model, dtype="bfloat16")
    wanted = {name: array.shape for name, array in abstract_parameters(model).items()}
    assert wanted == {name: part.shape for name, part in parts.items()}, wanted
    provenance = {
        "source": source.name,
        "revision": source.revision,
        "format": "released RAT+" if source.is_pth else "Hugging Face OLMo2",
        "add_memory": add_memory,
    }
    return Plan(source, model, dict(sorted(parts.items())), _tokenizer(source, model), provenance)


def convert(
    target: str | os.PathLike,
    planned: Plan,
    *,
    mesh: Mesh | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the model folder; all or nothing.

    Host memory holds one stacked parameter at a time. With a mesh, every host holds and reads
    the parts of its own devices only, and all hosts must see the same `target`.

    Args:
      target: the folder; must not exist, or be empty.
      planned: from `plan`.
      mesh: spreads the reading over its devices; None: this host alone.
      tell: receives one line on what is being done.

    Raises:
      InputError: the target cannot be written.
    """
    target = pathlib.Path(target)
    check_target(target, planned.nbytes)
    tell(f"{planned.parameters:,} parameters, {planned.nbytes / 1e9:.2f} GB, to {target}")
    with new_shared_folder(target) as part:
        checkpoint = part / CHECKPOINTS / "0"
        if jax.process_index() == 0:
            write_card(part, planned.model, planned.tokenizer, planned.provenance)
            _keep_companions(planned.source, part / HUGGINGFACE)
            checkpoint.parent.mkdir()
        write_parameters(checkpoint, planned.parts, mesh)
        if jax.process_index() == 0:
            seal(checkpoint)


def _olmo2(source: Source, head_dim: int | None) -> tuple[ModelConfig, dict[str, Part]]:
    path = source.path
    config = folder.open_config(path)
    model = olmo2.read_config(config, path / folder.CONFIG)
    if head_dim not in (None, model.head_dim):
        raise ConfigError("head_dim", head_dim, f"the config says {model.head_dim}")
    parts = _parts(folder.open_tensors(path), olmo2.layout(model), path)
    if model.memory is not None:
        memory = read_header(path / folder.MEMORY)
        parts |= _parts(memory, olmo2.memory_layout(model), path / folder.MEMORY)
    _check_special_tokens(path, config)
    return model, parts


def _ratplus(source: Source, head_dim: int | None) -> tuple[ModelConfig, dict[str, Part]]:
    tensors, config = ratplus.read(source.path)
    model = ratplus.infer_config(tensors, config, source.path, head_dim)
    if model.tie_embeddings:  # the head is a copy of the embedding
        tensors.pop(ratplus.HEAD, None)
    return model, _parts(tensors, ratplus.layout(model, tensors), source.path)


def _parts(tensors: Tensors, layout: Layout, path: pathlib.Path) -> dict[str, Part]:
    check(tensors, layout, path)

    def reader(placement) -> Callable[[Index], np.ndarray]:
        return lambda index: placement.read(tensors, index)

    return {name: Part(p.shape, p.dtype(tensors), reader(p)) for name, p in layout.items()}


def _cast(part: Part, dtype: np.dtype) -> Part:
    return Part(part.shape, dtype, lambda index: part.read(index).astype(dtype))


def _tokenizer(source: Source, model: ModelConfig) -> pathlib.Path | None:
    path = source.path.parent if source.is_pth else source.path
    path = path / folder.TOKENIZER
    if not path.exists():
        return None
    check_tokenizer(path, model)
    return path


def _check_special_tokens(path: pathlib.Path, config: dict[str, Any]) -> None:
    """The config's special tokens must be the tokenizer's: else one of them is another model's."""
    if not (path / folder.TOKENIZER).exists():
        return
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path / folder.TOKENIZER))
    except Exception:  # the library raises bare Exception; `check_tokenizer` reports it
        return
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = config.get(name)
        for number in ids if isinstance(ids, list) else [ids]:
            if isinstance(number, int) and tokenizer.id_to_token(number) is None:
                raise InputError(
                    f"{path / folder.TOKENIZER}: has no token {number}, the config's {name}; "
                    "config and tokenizer belong to different models"
                )


def _keep_companions(source: Source, place: pathlib.Path) -> None:
    if not source.is_pth:
        for name in folder.COMPANIONS:
            if (source.path / name).exists():
                write_file(place / name, (source.path / name).read_bytes())
