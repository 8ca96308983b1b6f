"""How far back the memory reaches while it is trained."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from ratjax.config.model import ModelConfig
from ratjax.data import Batch
from ratjax.model.decoder import before
from ratjax.model.parameters import Parameters, to_model
from ratjax.sharding import on_mesh, split_batch
from ratjax.sparsity.dense import Dense

DEFINITION = """\
gate_lengths: for each layer the mean effective length of its memory, in tokens. A channel whose
gate is g averages over about 1 / (1 - g) tokens. These have a heavy tail, so the mean over
positions, key/value heads and channels is the geometric one, exp(mean(log(1 / (1 - g)))). It is
taken over the first sequence of each device's part of the logged batch, with the parameters that
the batch finds."""


@functools.cache
def make_gate_lengths(
    config: ModelConfig, mesh: Mesh | None = None
) -> Callable[[Parameters, Batch], Float32[Array, " L"]]:
    """The compiled measurement: one forward pass over a few sequences of a batch.

    A program of its own, so that the training step is the same whether it is logged or not.

    Args:
      config: a model with a memory.
      mesh: what parameters and batch lie on.
    """
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]

    def lengths(parameters: Parameters, batch: Batch) -> Float32[Array, " L"]:
        model = to_model(config, parameters)
        parts = batch.tokens.shape[0] // shards
        tokens, starts = (split_batch(a, parts)[0] for a in (batch.tokens, batch.document_starts))
        starts = starts if config.memory.reset_at_documents else None

        def body(x, block):
            def attend(h):
                logits = block.attention.memory.gate_logits(h).astype(jnp.float32)
                # log(1 / (1 - g)), finite for every gate
                return block.attention(h, Dense(), starts), jax.nn.softplus(logits).mean()

            return block(x, attend)

        _, logs = jax.lax.scan(body, model.embed(tokens, before(tokens)), model.blocks)
        return jnp.exp(logs)

    return on_mesh(mesh, jax.jit(lengths))
