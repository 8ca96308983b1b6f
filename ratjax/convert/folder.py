"""A Hugging Face folder: its config, its tensors (in one file or several), its tokenizer."""

import pathlib
from typing import Any

from ratjax.convert.safetensors_file import read_header
from ratjax.convert.tensors import Tensor
from ratjax.errors import InputError
from ratjax.files import read_json

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MEMORY = "ratjax_memory.safetensors"
# Kept beside the converted model, so that an export has them again.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def open_config(folder: pathlib.Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
      InputError: there is none, or it is not readable.
    """
    try:
        return read_json(folder / CONFIG)
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {CONFIG}; not a Hugging Face model folder") from None


def open_tensors(folder: pathlib.Path) -> dict[str, Tensor]:
    """Every tensor of the folder, described from the files' headers.

    Raises:
      InputError: no safetensors there, an index that contradicts the files or points at a
        missing one, a tensor in two files, a file that is truncated.
    """
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            other = any(folder.glob("*.bin"))
            hint = "; only PyTorch .bin files: save it as safetensors first" if other else ""
            raise InputError(f"{folder}: has neither {SINGLE} nor {INDEX}{hint}")
        return read_header(folder / SINGLE)
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
        raise InputError(f"{folder / INDEX}: has no usable weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if pathlib.Path(name).name != name:
            raise InputError(f"{folder / INDEX}: points outside of its folder, at {name!r}")
        if not (folder / name).exists():
            raise InputError(f"{folder / INDEX}: points at {name}, which is missing")
        for key, tensor in read_header(folder / name).items():
            if key in tensors:
                raise InputError(f"{folder}: doubled tensor {key}, in {name} and in another file")
            tensors[key] = tensor
            index.setdefault(key, name)
            if index[key] != name:
                raise InputError(
                    f"{folder}: doubled tensor {key}: the index has it in {index[key]}, "
                    f"but {name} holds one too"
                )
    for key, name in index.items():
        if key not in tensors:
            raise InputError(f"{folder / INDEX}: has {key} in {name}, which does not hold it")
    return tensors
