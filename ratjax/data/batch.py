"""What a source hands out and a training step takes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int32


class Batch(NamedTuple):
    """Sequences with their targets.

    Attributes:
      tokens: inputs.
      targets: the token that follows each input.
      mask: whether that target counts in the loss.
      document_starts: whether a packed document begins at this input.
    """

    tokens: Int32[Array | np.ndarray, "B T"]
    targets: Int32[Array | np.ndarray, "B T"]
    mask: Bool[Array | np.ndarray, "B T"]
    document_starts: Bool[Array | np.ndarray, "B T"]
