"""Named tensors in files, described before anything of them is read."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a source checkpoint.

    Attributes:
      shape: as stored; PyTorch's linear layers are [out, in].
      dtype: its code in safetensors' notation, such as "BF16".
      view: maps the tensor into memory. Only what is read of the result is fetched, and it is
        unmapped with the last reference to it.
    """

    shape: tuple[int, ...]
    dtype: str
    view: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Tensors = Mapping[str, Tensor]
