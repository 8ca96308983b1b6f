"""Made-up source checkpoints of any shape, written without holding more than one tensor."""

import json
import pathlib

import numpy as np

from ratjax.config.model import ModelConfig
from ratjax.convert import olmo2
from ratjax.convert.safetensors_file import write_file
from ratjax.convert.tensors import DTYPES

CODES = {"F32": "float32", "BF16": "bfloat16"}


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of an OLMo2 folder."""
    return {key: p.source for p in olmo2.layout(config).values() for key in p.keys}


def hf_config(config: ModelConfig, dtype: str = "F32", **changes) -> dict:
    return {**olmo2.write_config(config, {}, CODES[dtype]), **changes}


def random_tensors(config: ModelConfig, dtype: str = "F32", seed: int = 0, block: int = 1 << 25):
    """(shapes, an iterator of arrays): values repeat every `block` elements, all distinct bits."""
    shapes = shapes_of(config)
    rng = np.random.default_rng(seed)
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    pool = rng.standard_normal(min(block, largest), np.float32).astype(DTYPES[dtype]) * DTYPES[
        dtype
    ].type(0.05)

    def arrays():
        for number, (name, shape) in enumerate(shapes.items()):
            count = int(np.prod(shape))
            array = np.resize(np.roll(pool, 1009 * number), count).reshape(shape)
            yield 1 + array if "norm" in name else array

    return {name: (shape, dtype) for name, shape in shapes.items()}, arrays()


def write_olmo2(
    folder: pathlib.Path, config: ModelConfig, dtype: str = "F32", files: int = 1, seed: int = 0
) -> pathlib.Path:
    """An OLMo2 folder of random weights, its tensors dealt out to `files` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config, dtype)))
    shapes, arrays = random_tensors(config, dtype, seed)
    names = list(shapes)
    if files == 1:
        write_file(folder / "model.safetensors", shapes, arrays, {"format": "pt"})
        return folder
    weight_map = {}
    for number in range(files):
        own = names[len(names) * number // files : len(names) * (number + 1) // files]
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = (next(arrays) for _ in own)
        write_file(folder / file, {n: shapes[n] for n in own}, part, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
