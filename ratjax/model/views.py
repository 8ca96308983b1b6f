"""What a model does on some text, laid open for plots: its gates, its attention weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from ratjax.errors import InputError
from ratjax.model.decoder import Decoder, before
from ratjax.shapes import Residual
from ratjax.sparsity.dense import Dense


def attention_inputs(model: Decoder, tokens: Int[Array, "B T"] | np.ndarray) -> list[Residual]:
    """What feeds each layer's projections, under dense attention; [B, T, M] a layer."""
    tokens = jnp.asarray(tokens, jnp.int32)

    @jax.jit
    def inputs(model: Decoder) -> list[Residual]:
        seen = []

        def attend(h, block):
            seen.append(h)
            return (block.attention(h, Dense()),)

        x = model.embed(tokens, before(tokens))
        for layer in range(model.config.num_layers):
            block = layer_of(model, layer)
            x = block(x, lambda h, block=block: attend(h, block))[0]
        return seen

    return inputs(model)


def layer_of(model: Decoder, layer: int):
    """One block, out of the stack."""
    return jax.tree.map(lambda a: a[layer], model.blocks)


def effective_lengths(
    model: Decoder, tokens: Int[Array, "B T"] | np.ndarray
) -> Float32[Array, "L G"]:
    """How far back each layer's and head's memory averages on this text, in tokens.

    1 / (1 - g) has a heavy tail, so the average over tokens and channels is the geometric one.

    Raises:
      InputError: the model has no memory.
    """
    if model.config.memory is None:
        raise InputError("model.memory=None: this model has no memory to look at")
    rows = []
    for layer, x in enumerate(attention_inputs(model, tokens)):
        lengths = layer_of(model, layer).attention.memory.effective_length(x)
        rows.append(jnp.exp(jnp.log(lengths).mean((0, 1, 3))))
    return jnp.stack(rows)


def attention_weights(
    model: Decoder, tokens: Int[Array, "B T"] | np.ndarray, layer: int, memory: bool = True
) -> Float32[Array, "B H T T"]:
    """One layer's dense attention weights; rows are queries and add up to 1.

    Args:
      model: any decoder.
      tokens: the text.
      layer: whose weights.
      memory: False leaves this layer's memory out (as g = 0 would), on the same input.
    """
    x = attention_inputs(model, tokens)[layer]
    attention = layer_of(model, layer).attention
    if memory:
        q, k = attention.states(x)[:2]
    else:
        q, k, _ = attention.project(x)
        q, k = attention.rotate(q, k, jnp.arange(x.shape[1], dtype=jnp.int32)[None])
    k = jnp.repeat(k, model.config.queries_per_kv_head, axis=2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k).astype(jnp.float32) / q.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
