"""The memory that a conversion adds to a model trained without one."""

from collections.abc import Callable

import jax
import numpy as np

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.convert.layout import Index
from ratjax.errors import check_choice
from ratjax.model.memory import initial_bias

CHOICES = ("identity", "near_identity", "ratplus")
Reader = Callable[[Index], np.ndarray]


def memory_config(choice: str, model: ModelConfig, bias: float) -> MemoryConfig:
    """The memory that `--add_memory` names.

    Args:
      choice: `identity`: g = 0, the model's outputs stay what they are. `near_identity`: zero
        matrix and a negative bias. `ratplus`: N(0, 0.02^2), no bias, as RAT+ starts.
      model: what gains it. A pre-norm model's projections read a normalised input already;
        a post-norm one's gate normalises it.
      bias: of `near_identity`.

    Raises:
      ConfigError: an unknown choice.
    """
    check_choice("add_memory", choice, CHOICES)
    reads = "raw" if model.norm == "pre" else "normalized"
    if choice == "ratplus":
        return MemoryConfig(gate_input=reads, gate_bias=False, init="normal")
    return MemoryConfig(gate_input=reads, init=choice, init_bias=bias)


def added(model: ModelConfig, seed: int) -> dict[str, tuple[tuple[int, ...], Reader]]:
    """The memory's parameters: (shape, a function that makes any part of them).

    Each layer is drawn from its own random stream, so that the values do not depend on which
    host makes which part.
    """
    memory = model.memory
    heads = (model.num_kv_heads, model.head_dim)
    shape = (model.num_layers, model.hidden_size, *heads)

    def weight(index: Index) -> np.ndarray:
        layers = range(model.num_layers)[index[0]]
        if memory.init != "normal":
            lengths = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
            return np.zeros(lengths, np.float32)
        out = []
        for layer in layers:
            stream = np.random.Generator(np.random.Philox(key=[seed, layer]))
            drawn = stream.standard_normal(shape[1:], np.float32)
            out.append((np.float32(model.init_std) * drawn)[index[1:]])
        return np.stack(out)

    def bias(index: Index) -> np.ndarray:
        one = np.asarray(initial_bias(memory, heads, jax.random.key(seed)))
        return np.broadcast_to(one, (model.num_layers, *heads))[index].copy()

    parameters = {"blocks/attention/memory/weight": (shape, weight)}
    if memory.gate_bias:
        parameters["blocks/attention/memory/bias"] = ((model.num_layers, *heads), bias)
    return parameters
