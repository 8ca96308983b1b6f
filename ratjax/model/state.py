"""What generation carries from token to token."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int32

from ratjax.shapes import Lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Caches and memory states, one entry a run of layers, stacked over its layers.

    Attributes:
      caches: what each run's pattern keeps.
      memories: the memory's (k, v) states, float32 [layers, B, G, D] each; None without one.
      positions: the position of the next token, int32 [B].
      last_token: the newest token, int32 [B, 1].
    """

    caches: tuple[Any, ...]
    memories: tuple[Any, ...]
    positions: Lengths
    last_token: Int32[Array, "B 1"]
