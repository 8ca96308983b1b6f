"""Released RAT+ checkpoints: PyTorch .pth files of its trainer (wimh966/rat-plus).

A file is {"task": state dict, "config": the run's, "optimizer": ..., ...}. A layer's
`in_proj` stacks the output gate, q, k, v and (merged or as a matrix `fgate_proj` of its own)
the memory's gate; the attention-only twin stacks the first four.
"""

import collections
import pathlib
import pickle
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from ratjax.config.model import ModelConfig
from ratjax.config.presets import RATPLUS_MEMORY
from ratjax.convert.layout import Layout, Placement
from ratjax.convert.tensors import Tensor, Tensors
from ratjax.errors import InputError

COMPILED = "_orig_mod."  # what torch.compile puts into names
EMBEDDING, HEAD = "embedding.wte.weight", "head.lm_head.weight"
IN_PROJ = "backbone.layers.{}.seq_layer.in_proj.weight"
GATE = "backbone.layers.{}.seq_layer.fgate_proj.weight"
HEAD_DIM = 128  # of every released model
DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


# The run's config in these files is an `easydict.EasyDict`; to us it is a plain dictionary.
STAND_INS = [(collections.OrderedDict, "easydict.EasyDict")]


def read(path: pathlib.Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Opens a .pth file without running anything that is in it.

    Args:
      path: the file. Its tensors are mapped, not read.

    Returns:
      (tensors by name, without `torch.compile`'s prefixes; the run's config, or {}).

    Raises:
      InputError: no torch here, a file that is damaged or asks for other classes than tensors
        and plain containers, or names that fall together without the prefix.
    """
    torch = _torch()
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {found[1]}" if found else "torch.load(weights_only=True) fails"
        raise InputError(
            f"{path}: holds more than tensors and plain containers ({what}); refused"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged: {str(error).splitlines()[0][:150]}") from None
    state = content.get("task", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: holds no state dict under 'task'; not a released RAT+ file")
    names = [str(name).replace(COMPILED, "") for name in state]
    name, times = collections.Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: doubled tensor {name}, with and without {COMPILED!r}")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {name} is no tensor; not a released RAT+ file")
    tensors = {
        name: Tensor(
            tuple(value.shape),
            DTYPES.get(str(value.dtype), str(value.dtype)),
            lambda value=value: _to_numpy(torch, value),
        )
        for name, value in zip(names, state.values(), strict=True)
    }
    config = content.get("config") if state is not content else None
    return tensors, config if isinstance(config, Mapping) else {}


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError:
        raise InputError(
            "released RAT+ files are PyTorch's: install torch, or the extra that has it, "
            "pip install -e '.[parity]'"
        ) from None
    return torch


def _to_numpy(torch: ModuleType, value: Any) -> np.ndarray:
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def infer_config(
    tensors: Tensors, config: Mapping[str, Any], path: object, head_dim: int | None = None
) -> ModelConfig:
    """The model whose tensors these are.

    Args:
      tensors: from `read`.
      config: the run's config: its number of heads and RoPE base are taken where it has them.
      path: names the file in messages.
      head_dim: channels of a head, where the config does not tell; None: 128, as released.

    Raises:
      InputError: not RAT+'s tensors, or shapes that fit no layout of it.
    """
    if EMBEDDING not in tensors:
        raise InputError(f"{path}: missing tensor {EMBEDDING}; not a released RAT+ file")
    if len(tensors[EMBEDDING].shape) != 2:
        raise InputError(f"{path}: {EMBEDDING} has {len(tensors[EMBEDDING].shape)} axes, not 2")
    vocab, width = tensors[EMBEDDING].shape
    layers = 0
    while IN_PROJ.format(layers) in tensors:
        layers += 1
    if not layers:
        raise InputError(f"{path}: missing tensor {IN_PROJ.format(0)}")
    rows = tensors[IN_PROJ.format(0)].shape[0]
    if rows not in (4 * width, 5 * width):
        raise InputError(
            f"{path}: {IN_PROJ.format(0)} has {rows} rows, neither 4 nor 5 times {width}"
        )
    with_memory = rows == 5 * width or GATE.format(0) in tensors
    heads = _dig(config, "model", "backbone", "seq_cell", "num_head")
    if not isinstance(heads, int) or head_dim is not None:
        heads = width // (head_dim or HEAD_DIM)
    if heads < 1 or width % heads:
        raise InputError(f"{path}: its width {width} has no whole heads; give --head_dim")
    fc1 = tensors.get("backbone.layers.0.hidden_layer.fc1.weight")
    base = _dig(config, "model", "embedding", "pe", "base")
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        intermediate_size=4 * width if fc1 is None else fc1.shape[0],
        mlp="gelu",
        norm="pre",
        qk_norm=False,
        output_gate=True,
        tie_embeddings=_tied(tensors),
        rope_theta=float(base) if isinstance(base, int | float) else 10_000.0,
        memory=RATPLUS_MEMORY if with_memory else None,
    )


def _tied(tensors: Tensors) -> bool:
    """Whether the head is the embedding: the files hold both, equal where they were tied."""
    if HEAD not in tensors:
        return True
    if tensors[HEAD].shape != tensors[EMBEDDING].shape:
        return False
    a, b = tensors[HEAD].view(), tensors[EMBEDDING].view()
    return all(
        np.array_equal(a[i : i + 1024].view(np.uint8), b[i : i + 1024].view(np.uint8))
        for i in range(0, len(a), 1024)
    )


def _dig(config: Any, *names: str) -> Any:
    for name in names:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def layout(model: ModelConfig, tensors: Tensors) -> Layout:
    """Where every parameter lies, in either layout of the gate.

    Args:
      model: from `infer_config`.
      tensors: tells whether the gate is merged into `in_proj`.
    """
    m, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    h, d = model.num_heads, model.head_dim
    apart = GATE.format(0) in tensors
    parts = 5 if model.memory is not None and not apart else 4

    def layers(name: str, source: tuple, split: tuple, axes: tuple, start: int = 0) -> Placement:
        keys = tuple(f"backbone.layers.{i}.{name}.weight" for i in range(model.num_layers))
        return Placement(keys, source, split, axes, start)

    def in_proj(part: int) -> Placement:
        return layers("seq_layer.in_proj", (parts * m, m), (h, d, m), (2, 0, 1), part * m)

    parameters = {
        "embedding": Placement((EMBEDDING,), (v, m), (v, m), (0, 1), stacked=False),
        "norm/weight": Placement(("backbone.ln.weight",), (m,), (m,), (0,), stacked=False),
        "blocks/attention_norm/weight": layers("seq_layer.input_norm", (m,), (m,), (0,)),
        "blocks/attention/w_output_gate": in_proj(0),
        "blocks/attention/w_q": in_proj(1),
        "blocks/attention/w_k": in_proj(2),
        "blocks/attention/w_v": in_proj(3),
        "blocks/attention/w_out": layers("seq_layer.out_proj", (m, m), (m, h, d), (1, 2, 0)),
        "blocks/mlp_norm/weight": layers("hidden_layer.ln", (m,), (m,), (0,)),
        "blocks/mlp/w_up": layers("hidden_layer.fc1", (f, m), (f, m), (1, 0)),
        "blocks/mlp/w_down": layers("hidden_layer.fc2", (m, f), (m, f), (1, 0)),
    }
    if not model.tie_embeddings:
        parameters["head"] = Placement((HEAD,), (v, m), (v, m), (1, 0), stacked=False)
    if model.memory is not None:
        parameters["blocks/attention/memory/weight"] = (
            layers("seq_layer.fgate_proj", (m, m), (h, d, m), (2, 0, 1)) if apart else in_proj(4)
        )
    return parameters
