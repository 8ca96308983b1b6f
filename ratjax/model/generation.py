"""Greedy generation: batched, jitted, mixed prompt lengths, no recompilation a length."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int, Int32

from ratjax.errors import InputError
from ratjax.model.state import DecodeState
from ratjax.shapes import Lengths, PromptKeys
from ratjax.sharding import constrain
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Patterns, Reads

SMALLEST_BUCKET = 16


class Generation(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: int32 [B, max_new_tokens]; after a stop token, the stop token repeated.
      prefill: entries read by the prompt, averaged over layers.
      decode: entries read while decoding, summed over the steps up to the stop token. The
        first token comes from prefill's logits and is not a decode step.
    """

    tokens: Int32[Array, "B N"]
    prefill: Reads
    decode: Reads


def bucket(length: int) -> int:
    """The padded length for a prompt: eight steps an octave, so at most 12.5 % is padding.

    Every length in a bucket runs the same compiled program.
    """
    length = max(length, SMALLEST_BUCKET)
    step = max(2 ** (length - 1).bit_length() // 16, SMALLEST_BUCKET)
    return -(-length // step) * step


def generate(
    model: nnx.Module,
    tokens: Int[Array, "B T"] | np.ndarray,
    lengths: Int[Array, " B"] | np.ndarray | list,
    max_new_tokens: int,
    pattern: Patterns = Dense(),
    *,
    stop_token: int | None = None,
    seed: int = 0,
    rows: Int[Array, " B"] | np.ndarray | list | None = None,
    width: int | None = None,
) -> Generation:
    """Continues prompts greedily.

    Args:
      model: a `Decoder` (anything with its `prefill` and `decode`).
      tokens: prompts padded on the right, [B, T]; what stands behind a prompt is ignored.
      lengths: tokens of each prompt, [B], 1..T.
      max_new_tokens: tokens to generate.
      pattern: one pattern, or one for each layer. The first new token comes from prefill's
        logits, which are dense under Quest and SnapKV.
      stop_token: rows end after it (it is kept); generation ends when all rows have.
      seed: of random selectors.
      rows: numbers that tell prompts apart to random selectors, [B]; by default 0..B-1. Give
        each prompt its own number and its draws do not depend on how prompts are batched or padded.
      width: the padded prompt length; by default the bucket of the longest prompt. For callers
        whose batches are to share one program.

    Returns:
      Tokens and the entries read.

    Raises:
      InputError: a length outside 1..T, or no tokens asked for.
    """
    tokens, lengths = np.asarray(tokens, np.int32), np.asarray(lengths, np.int32)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if lengths.min() < 1 or lengths.max() > tokens.shape[1]:
        raise InputError(
            f"lengths={lengths.min()}..{lengths.max()}: prompts must hold between 1 and "
            f"{tokens.shape[1]} tokens, the width of `tokens`"
        )
    longest = int(lengths.max())
    padded = np.zeros((tokens.shape[0], max(width or bucket(longest), longest)), np.int32)
    padded[:, :longest] = tokens[:, :longest]
    padded[np.arange(padded.shape[1]) >= lengths[:, None]] = 0
    numbers = np.arange(len(tokens)) if rows is None else np.asarray(rows)
    stop = jnp.int32(-1 if stop_token is None else stop_token)
    keys = prompt_keys(numbers, seed)
    return _generate(model, padded, lengths, keys, stop, max_new_tokens, pattern)


@partial(jax.jit, static_argnames=("max_new_tokens", "pattern"))
def _generate(
    model: nnx.Module,
    tokens: Int32[Array, "B T"],
    lengths: Lengths,
    keys: PromptKeys,
    stop: Int32[Array, ""],
    max_new_tokens: int,
    pattern: Patterns,
) -> Generation:
    logits, state, reads = model.prefill(tokens, lengths, pattern, max_new_tokens, keys)
    out, decode_reads, _ = decode(model, greedy(logits), state, keys, stop, max_new_tokens, pattern)
    return Generation(out, reads, decode_reads)


def greedy(logits: Float32[Array, "B V"]) -> Int32[Array, " B"]:
    """The likeliest token of each row, the lowest among equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def prompt_keys(numbers: Int[Array, " B"] | np.ndarray, seed: int) -> PromptKeys:
    """Each prompt's random key, from its number."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(numbers)


def decode(
    model: nnx.Module,
    first: Int32[Array, " B"],
    state: DecodeState,
    keys: PromptKeys,
    stop: Int32[Array, ""],
    max_new_tokens: int,
    pattern: Patterns,
) -> tuple[Int32[Array, "B N"], Reads, DecodeState]:
    """Greedy decoding from a prefilled state, until all rows have ended; to be traced.

    Args:
      model: as in `generate`.
      first: the tokens that prefill's logits gave.
      state: what prefill left.
      keys: one random key a prompt.
      stop: the token that ends a row; -1 for none.
      max_new_tokens: tokens a row, `first` included.
      pattern: as in `generate`.

    Returns:
      (tokens, entries read while decoding, the state behind the last token).
    """
    places = jnp.arange(max_new_tokens)
    out = jnp.where(places == 0, first[:, None], stop)
    zeros = constrain(jnp.zeros(len(first), jnp.float32), "batch")

    def unfinished(carry):
        step, token, *_ = carry
        return (step < max_new_tokens) & ~jnp.all(token == stop)

    def advance(carry):
        step, token, out, state, reads = carry
        logits, state, step_reads = model.decode(token[:, None], state, pattern, keys)
        running = token != stop
        token = jnp.where(running, greedy(logits), stop)
        reads = jax.tree.map(
            lambda total, new: total + jnp.where(running, new, 0), reads, step_reads
        )
        return step + 1, token, jnp.where(places == step, token[:, None], out), state, reads

    initial = (jnp.int32(1), first, out, state, Reads(zeros, zeros))
    _, _, out, state, reads = jax.lax.while_loop(unfinished, advance, initial)
    return out, reads, state
