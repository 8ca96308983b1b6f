"""The decoder: tokens -> embedding -> L blocks -> norm -> logits.

The layers are stacked along a leading axis, and each run of consecutive layers with one
pattern is one `lax.scan`: all of them where the pattern is the same throughout. For inference on
GPUs they may lie apart instead (`ratjax.model.apart`).
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from ratjax.config.model import ModelConfig
from ratjax.errors import ConfigError
from ratjax.model import apart
from ratjax.model.apart import over_layers
from ratjax.model.block import Block
from ratjax.model.generation import Generation, generate
from ratjax.model.layers import RMSNorm, normal
from ratjax.model.remat import remat
from ratjax.model.state import DecodeState
from ratjax.shapes import Lengths, Logits, PRNGKeyArray, PromptKeys, Residual, Tokens
from ratjax.sharding import (
    constrain,
    gather,
    look_up,
    pick,
)
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Pattern, Patterns, Reads
from ratjax.sparsity.selection import fold_in


def runs(patterns: Patterns, num_layers: int) -> list[tuple[Pattern, int, int]]:
    """Consecutive layers with equal patterns, as (pattern, first layer, last layer + 1).

    Raises:
      ConfigError: one pattern a layer was given, but not as many as there are layers.
    """
    if isinstance(patterns, Pattern):
        return [(patterns, 0, num_layers)]
    if len(patterns) != num_layers:
        raise ConfigError(
            "pattern", len(patterns), f"give one pattern, or one for each of {num_layers} layers"
        )
    starts = [i for i in range(num_layers) if i == 0 or patterns[i] != patterns[i - 1]]
    return [
        (patterns[start], start, stop)
        for start, stop in zip(starts, [*starts[1:], num_layers], strict=True)
    ]


class Decoder(nnx.Module):
    """A decoder-only transformer; a plain pytree of float32 parameters.

    Works directly under `jax.jit`, `jax.grad`, `jax.eval_shape` and `jax.tree`.
    """

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        self.config = config
        embed, previous, blocks, head = jax.random.split(key, 4)
        table = (config.vocab_size, config.hidden_size)
        self.embedding = normal(embed, table, config.init_std)
        copied = config.previous_token_init == "copy"
        self.previous_embedding = (
            normal(embed if copied else previous, table, config.init_std)
            if config.previous_token_embedding
            else None
        )
        block_keys = jax.random.split(blocks, config.num_layers)
        self.blocks = jax.vmap(lambda k: Block(config, k))(block_keys)
        self.norm = RMSNorm((config.hidden_size,), config.norm_eps)
        self.head = None if config.tie_embeddings else normal(head, table[::-1], config.init_std)

    def apart(self) -> "Decoder":
        """The same model with its layers as arrays of their own: faster inference on GPUs.

        This model is used up: its layers' arrays are freed as they are split.
        """
        leaves, structure = jax.tree.flatten(self)
        model = jax.tree.unflatten(structure, leaves)
        model.blocks = apart.split(self.blocks)
        return model

    def embed(self, tokens: Tokens, previous: Tokens) -> Residual:
        """Embeddings in the compute dtype; `previous` is the token before each (-1: none)."""
        dtype = self.config.dtype if self.previous_embedding is None else "float32"
        x = look_up(self.embedding[...], tokens, dtype)
        if self.previous_embedding is not None:
            before = look_up(self.previous_embedding[...], jnp.maximum(previous, 0), dtype)
            x = x + jnp.where(previous[..., None] >= 0, before, 0)
        return x.astype(self.config.dtype)

    def logits(self, hidden: Float[Array, "*any M"]) -> Float32[Array, "*any V"]:
        """Final norm's output to float32 logits."""
        head = gather(self.output_head().astype(hidden.dtype))
        return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)

    def output_head(self) -> Float[Array, "M V"]:
        """What turns hidden channels into logits."""
        return self.embedding[...].T if self.head is None else self.head[...]

    def stacks(self, patterns: Patterns) -> Iterator[tuple[Pattern, Block, Int32[Array, " n"]]]:
        """Each run of layers: its pattern, its blocks, its layers' indices."""
        for pattern, start, stop in runs(patterns, self.config.num_layers):
            if pattern.uses_raw and self.config.memory is None:
                raise ConfigError("pattern", pattern, "reads what a memory is fed; there is none")
            whole = stop - start == self.config.num_layers
            blocks = self.blocks if whole else apart.some(self.blocks, start, stop)
            yield pattern, blocks, jnp.arange(start, stop, dtype=jnp.int32)

    def hidden(
        self,
        tokens: Tokens,
        pattern: Patterns = Dense(),
        document_starts: Bool[Array, "B T"] | None = None,
    ) -> Residual:
        """The residual stream after the final norm, for whole sequences.

        Args:
          tokens: int32 [B, T].
          pattern: one pattern, or one for each layer.
          document_starts: True where a packed document begins. Resets the memory where the
            config says so, and is ignored otherwise. Attention itself crosses documents, as
            in the published training.

        Returns:
          [B, T, M] in the compute dtype.
        """
        memory = self.config.memory
        if memory is None or not memory.reset_at_documents:
            document_starts = None
        x = self.embed(tokens, before(tokens))
        for run_pattern, blocks, _ in self.stacks(pattern):

            def body(x, xs, run_pattern=run_pattern):
                (block,) = xs
                attend = lambda h: (block.attention(h, run_pattern, document_starts),)  # noqa: E731
                return block(x, attend)[0], None

            body = remat(body, self.config.remat)
            x, _ = over_layers(body, x, blocks, unroll=self.config.unroll)
        return self.norm(x)

    def __call__(
        self,
        tokens: Int[Array, "B T"] | np.ndarray,
        pattern: Patterns = Dense(),
    ) -> Logits:
        """Logits float32 [B, T, V] for int32 tokens [B, T]; compiled once a shape."""
        return _logits(self, jnp.asarray(tokens, jnp.int32), pattern)

    def prefill(
        self,
        tokens: Tokens,
        lengths: Lengths,
        pattern: Patterns,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> tuple[Float32[Array, "B V"], DecodeState, Reads]:
        """Reads prompts and builds the state that `decode` continues from.

        Args:
          tokens: prompts padded on the right to one length, int32 [B, T].
          lengths: valid tokens of each, at least 1.
          pattern: one pattern, or one for each layer.
          new_tokens: how many `decode` calls the caches must have room for.
          keys: one random key a prompt, for random selectors.

        Returns:
          (logits after each prompt's last token, the state, entries read: averaged over layers).
        """
        x = self.embed(tokens, before(tokens))
        caches, memories, all_reads = [], [], []
        for run_pattern, blocks, layers in self.stacks(pattern):

            def body(x, xs, run_pattern=run_pattern):
                block, layer = xs
                attend = lambda h: block.attention.prefill(  # noqa: E731
                    h, lengths, run_pattern, new_tokens, fold_in(keys, layer)
                )
                x, cache, memory, reads = block(x, attend)
                return x, (cache, memory, reads)

            x, (cache, memory, reads) = over_layers(
                body, x, blocks, layers, unroll=self.config.unroll
            )
            caches.append(cache)
            memories.append(memory)
            all_reads.append(reads)
        last, last_token = pick(x, lengths - 1), pick(tokens, lengths - 1)
        state = DecodeState(tuple(caches), tuple(memories), lengths, last_token)
        return self.next_logits(last), state, mean_over_layers(all_reads)

    def decode(
        self,
        tokens: Int32[Array, "B 1"],
        state: DecodeState,
        pattern: Patterns,
        keys: PromptKeys | None = None,
    ) -> tuple[Float32[Array, "B V"], DecodeState, Reads]:
        """One token of each sequence; `pattern` and `keys` as given to `prefill`."""
        x = self.embed(tokens, state.last_token)
        caches, memories, all_reads = [], [], []
        for index, (run_pattern, blocks, layers) in enumerate(self.stacks(pattern)):

            def body(carry, xs, run_pattern=run_pattern.decodes_as):
                x, cache = carry
                block, memory, layer, slot = xs
                attend = lambda h: block.attention.decode(  # noqa: E731
                    h, state.positions, run_pattern, cache, slot, memory, fold_in(keys, layer)
                )
                x, cache, memory, reads = block(x, attend)
                return (x, cache), (memory, reads)

            # The cache travels as carry, not as scanned input and output: XLA then updates
            # it in place instead of copying it at every token.
            (x, cache), (memory, reads) = over_layers(
                body,
                (x, state.caches[index]),
                blocks,
                state.memories[index],
                layers,
                layers - layers[0],
                unroll=self.config.unroll,
            )
            caches.append(cache)
            memories.append(memory)
            all_reads.append(reads)
        state = DecodeState(tuple(caches), tuple(memories), state.positions + 1, tokens)
        return self.next_logits(x), state, mean_over_layers(all_reads)

    def next_logits(self, x: Float[Array, "B 1 M"]) -> Float32[Array, "B V"]:
        """The residual stream after the last block to logits, all words on every device."""
        return constrain(self.logits(self.norm(x))[:, 0], "batch", None)

    def generate(
        self,
        tokens: Int[Array, "B T"] | np.ndarray,
        lengths: Int[Array, " B"] | np.ndarray | list,
        max_new_tokens: int,
        pattern: Patterns = Dense(),
        **options,
    ) -> Int32[Array, "B N"]:
        """Greedy continuations, int32 [B, max_new_tokens]; see `generation.generate`."""
        return self.generation(tokens, lengths, max_new_tokens, pattern, **options).tokens

    def generation(self, *args, **options) -> Generation:
        """As `generate`, with the entries read."""
        return generate(self, *args, **options)


@partial(jax.jit, static_argnames="pattern")
def _logits(model: Decoder, tokens: Tokens, pattern: Patterns) -> Logits:
    return model.logits(model.hidden(tokens, pattern))


def before(tokens: Tokens) -> Tokens:
    """The token before each one; -1 at the start."""
    tokens = constrain(tokens, "batch", None)  # the one before may lie on another device
    tokens = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return constrain(tokens, "batch", "time")


def mean_over_layers(reads: list[Reads]) -> Reads:
    """Entries read by each prompt in each layer, [layers, B] a run, averaged over layers.

    Hits, where there are any, stay apart by layer.
    """
    joined = jax.tree.map(lambda *runs: jnp.concatenate(runs), *reads)
    return joined._replace(read=joined.read.mean(0), visible=joined.visible.mean(0))
