"""What a compiled program takes of a chip's main memory."""

import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip. The compiler's figures, but for what the arguments are.

    Attributes:
      parameters: of the model.
      optimizer: AdamW's moments.
      inputs: other arguments: the batch, prompts, caches.
      outputs: results that do not take an argument's place.
      temporaries: what exists while the program runs: activations, gradients, gathered parameters,
        and what lies unused between them.
      code: the program itself.
      peak: all of it at once.
    """

    parameters: int
    optimizer: int
    inputs: int
    outputs: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        return sum(dataclasses.astuple(self))


def memory_of(compiled: jax.stages.Compiled, parameters: Any, optimizer: Any = ()) -> Memory:
    """The memory of a program.

    Args:
      compiled: the program.
      parameters: those of its arguments that are the model, with their shardings.
      optimizer: those that are the optimizer's state.
    """
    stats = compiled.memory_analysis()
    owned = bytes_per_device(parameters), bytes_per_device(optimizer)
    return Memory(
        *owned,
        # Arguments that the program never reads are not passed.
        inputs=max(stats.argument_size_in_bytes - sum(owned), 0),
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes of the largest part of every array that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
