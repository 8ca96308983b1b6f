"""Layers as arrays of their own, instead of stacked: for inference on GPUs.

A loop over stacked layers hands each turn slices of the stack. On GPUs XLA's matrix products read
whole arrays, so every slice is copied first: three times the memory traffic of a token's weights,
half the time of a decode step. Apart, layers are read where they lie; the price is a program that
holds every layer, and so compiles longer. Training keeps the stack, and amortises its copies.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ratjax.model.block import Block

Blocks = Block | nnx.List


def pays(mesh: Mesh | None) -> bool:
    """Whether inference is faster with layers apart: on one GPU, where it was measured."""
    return mesh is None and jax.devices()[0].platform == "gpu"


def split(blocks: Blocks) -> nnx.List:
    """The layers of a stack, each a block of its own.

    The stack is used up: each of its arrays is freed once it has been split, so that no more than
    one of them is there twice.
    """
    if not isinstance(blocks, Block):
        return blocks
    leaves, structure = jax.tree.flatten(blocks)
    layers = []
    for leaf in leaves:
        layers.append(jax.block_until_ready(_unstack(leaf)))
        leaf.delete()
    return nnx.List([jax.tree.unflatten(structure, one) for one in zip(*layers, strict=True)])


_unstack = jax.jit(lambda leaf: tuple(leaf))


def some(blocks: Blocks, start: int, stop: int) -> Blocks:
    """The layers from `start` to `stop` (excluded)."""
    if isinstance(blocks, Block):
        return jax.tree.map(lambda a: a[start:stop], blocks)
    return nnx.List(list(blocks)[start:stop])


def over_layers(
    body: Callable[[Any, tuple], tuple[Any, Any]],
    carry: Any,
    blocks: Blocks,
    *others: Any,
    unroll: int,
) -> tuple[Any, Any]:
    """`carry, out = body(carry, (block, *others))` for each layer, outputs stacked.

    Args:
      body: what a layer does.
      carry: passed from layer to layer.
      blocks: the layers, stacked or apart.
      *others: more that each layer gets, stacked along a leading axis.
      unroll: layers a turn of the loop, where they are stacked.
    """
    if isinstance(blocks, Block):
        return jax.lax.scan(body, carry, (blocks, *others), unroll=unroll)
    outs = []
    for index, block in enumerate(blocks):
        mine = jax.tree.map(lambda a: a[index], others)  # noqa: B023
        carry, out = body(carry, (block, *mine))
        outs.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *outs)
