"""From a model folder of this project to a Hugging Face folder."""

import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from ratjax.convert import folder as hf
from ratjax.convert import olmo2
from ratjax.convert.layout import Layout, Placement
from ratjax.convert.run import STORED
from ratjax.convert.safetensors_file import write_file as write_safetensors
from ratjax.convert.tensors import CODES, DTYPES
from ratjax.convert.write import check_target
from ratjax.errors import InputError, check_choice
from ratjax.files import new_folder, read_json, write_file, write_json
from ratjax.model.checkpoint import HUGGINGFACE, TOKENIZER
from ratjax.model.inspect import Inspection, inspect

FILE_BYTES = 5_000_000_000  # as transformers cuts its files
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Tensors = dict[str, tuple[Placement, str, int, str]]


def export(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    dtype: str | None = None,
    step: int | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes an OLMo2 model as a folder that `transformers` loads; all or nothing.

    One layer's tensor is in memory at a time. A memory goes into a file of its own beside the
    weights, `ratjax_memory.safetensors`, and its settings into the config's `ratjax_memory`:
    transformers ignores both, and so computes the model without its memory; `convert`
    reads them back.

    Args:
      source: a model folder, or one of its `checkpoints/<step>` folders.
      target: the folder; must not exist, or be empty.
      dtype: what weights are written as, `float32` or `bfloat16`; None: as they are stored.
      step: which checkpoint; None takes the newest.
      file_bytes: where the weights are cut into several files.

    Raises:
      InputError: no such checkpoint, not an OLMo2 model, or the target cannot be written.
    """
    if dtype is not None:
        check_choice("dtype", dtype, STORED)
    code = None if dtype is None else CODES[STORED[dtype]]
    found = inspect(source, step)
    kept = found.folder / HUGGINGFACE
    base = read_json(kept / hf.CONFIG) if (kept / hf.CONFIG).exists() else {}
    layout = olmo2.layout(found.config)
    stored = CODES.get(np.dtype(found.parameters["blocks/attention/w_q"].dtype), "F32")
    config = olmo2.write_config(found.config, base, TORCH_NAMES[code or stored])
    tensors = _tensors(found, layout, code)
    memory = _tensors(found, olmo2.memory_layout(found.config), None)
    sizes = {key: _nbytes(entry) for key, entry in (tensors | memory).items()}
    check_target(pathlib.Path(target), sum(sizes.values()))
    with new_folder(target) as part:
        files = cut(list(tensors), sizes, file_bytes)
        for name, keys in files.items():
            _write(found, part / name, {key: tensors[key] for key in keys})
        if len(files) > 1:
            weight_map = {key: name for name, keys in files.items() for key in keys}
            total = sum(sizes[key] for key in tensors)
            write_json(
                part / hf.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        if memory:
            _write(found, part / hf.MEMORY, memory)
        _copy_tokenizer(found.folder, part)
        write_file(part / hf.CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def cut(keys: list[str], sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """File names and the tensors of each, in order, no file above `limit` where it can be."""
    files: list[list[str]] = [[]]
    room = limit
    for key in keys:
        if files[-1] and sizes[key] > room:
            files.append([])
            room = limit
        files[-1].append(key)
        room -= sizes[key]
    if len(files) == 1:
        return {hf.SINGLE: files[0]}
    count = len(files)
    return {
        f"model-{i:05}-of-{count:05}.safetensors": keys for i, keys in enumerate(files, start=1)
    }


def _tensors(found: Inspection, layout: Layout, code: str | None) -> Tensors:
    """Every source tensor: its placement, our parameter, the layer, the dtype; layer by layer."""
    entries = []
    for name, placement in layout.items():
        parameter = found.parameters.get(name)
        if parameter is None or parameter.shape != placement.shape:
            shape = None if parameter is None else parameter.shape
            raise InputError(
                f"{found.folder}: {name} has shape {shape}, by its model.json {placement.shape}"
            )
        kept = CODES.get(np.dtype(parameter.dtype), "F32")
        for layer, key in enumerate(placement.keys):
            order = (layer if placement.stacked else -1, key)
            entries.append((order, key, (placement, name, layer, code or kept)))
    return {key: entry for _, key, entry in sorted(entries, key=lambda e: e[0])}


def _nbytes(entry: tuple[Placement, str, int, str]) -> int:
    placement, _, _, code = entry
    return int(np.prod(placement.source, dtype=np.int64)) * DTYPES[code].itemsize


def _write(found: Inspection, path: pathlib.Path, tensors: Tensors) -> None:
    def arrays() -> Iterator[np.ndarray]:
        for placement, name, layer, code in tensors.values():
            ours = found.read(name, layer if placement.stacked else ())
            yield placement.to_source(ours).astype(DTYPES[code])

    shapes = {key: (entry[0].source, entry[3]) for key, entry in tensors.items()}
    write_safetensors(path, shapes, arrays(), {"format": "pt"})


def _copy_tokenizer(folder: pathlib.Path, part: pathlib.Path) -> None:
    for name in hf.COMPANIONS:
        if name != hf.CONFIG and (folder / HUGGINGFACE / name).exists():
            write_file(part / name, (folder / HUGGINGFACE / name).read_bytes())
    if (folder / TOKENIZER).exists():
        write_file(part / hf.TOKENIZER, (folder / TOKENIZER).read_bytes())
        if not (part / "tokenizer_config.json").exists():
            write_json(part / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"})
