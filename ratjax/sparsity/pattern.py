"""The interface between the model and a sparse pattern."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, PyTree

from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values

Cache = PyTree[Array]


class Reads(NamedTuple):
    """Key/value entries, per prompt: summed over its queries, averaged over the query heads.

    `read / visible` is the fraction of entries read. `visible` counts what dense causal
    attention would have read: for a decode step the whole context so far, including what a
    compressed cache has discarded.

    `hits` is there where a selection is watched (`ratjax.sparsity.watched`): whether each head's
    holds the position that this decode step needs. The last axis is one, so that the heads stand
    where every array has them that is cut by heads.
    """

    read: Float32[Array, " B"]
    visible: Float32[Array, " B"]
    hits: Bool[Array, "*layers B H 1"] | None = None


class Both(NamedTuple):
    """Keys, values or caches of a model with a memory: what it reads, and what its memory was fed.

    Attributes:
      states: the memory's states, which the model reads by itself.
      raw: the keys and values that entered the memory, normalised and rotated as its states are.
    """

    states: Any
    raw: Any


def causal_pairs(lengths: Lengths) -> Float32[Array, " B"]:
    """Query-key pairs of dense causal attention over `lengths` tokens."""
    n = lengths.astype(jnp.float32)
    return n * (n + 1) / 2


@dataclasses.dataclass(frozen=True)
class Pattern(abc.ABC):
    """One way to choose the entries that a query reads.

    Patterns are hashable and static: a new setting is a new compiled program. `keys` (one
    random key a prompt) is needed by random selectors alone. Queries and keys come rotated;
    k and v are zero beyond a prompt's length.
    """

    @abc.abstractmethod
    def attend(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths | None = None,
        keys: PromptKeys | None = None,
    ) -> tuple[Queries, Reads]:
        """Attention over whole sequences (T = S): training and prefill.

        `lengths` (valid tokens a prompt, None for all) only matters for `Reads`: padding
        stands behind the prompt, where causality hides it. What is returned at padded
        queries is unspecified.
        """

    @abc.abstractmethod
    def compress(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> Any:
        """The cache of one layer after prefill, with room for `new_tokens` more."""

    @abc.abstractmethod
    def decode(
        self, q: Float[Array, "B 1 H D"], cache: Any, keys: PromptKeys | None = None
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        """One query a prompt against one layer's cache, which already holds its own token."""

    # Several patterns may answer the same prompts one after the other. Those with one
    # `prefills_as` share a prefill: each adopts its cache, decodes, and restores it.

    @property
    def prefills_as(self) -> "Pattern":
        """The pattern whose prefill is the same as this one's."""
        return self

    @property
    def decodes_as(self) -> "Pattern":
        """The pattern whose decode is the same as this one's: one program for both."""
        return self

    def adopt(
        self,
        prompt: Any,
        queries: Float[Array, "L B W H D"] | None,
        new_tokens: int,
        keys: PromptKeys | None = None,
        golden: Int32[Array, "B N"] | None = None,
    ) -> Any:
        """This pattern's cache from that of `prefills_as`, both stacked over all layers.

        Args:
          prompt: the cache after prefill; only its first `lengths` slots hold the prompt.
          queries: the last queries of each prompt, where `window_queries` asks for any.
          new_tokens: slots of `prompt` beyond the prompts' width.
          keys: as in `compress`, before a layer's number is folded in.
          golden: positions of each prompt that the right answer is copied from, -1 for none; for
            patterns that are steered by them.
        """
        return prompt

    def restore(self, prompt: Any, used: Any) -> Any:
        """The adopted cache again, as it was for all that counts, from the decoded one."""
        return used

    @property
    def window_queries(self) -> int:
        """How many of a prompt's last queries `adopt` needs."""
        return 0

    @property
    def uses_raw(self) -> bool:
        """Whether keys and values must come as `Both`: for models with a memory alone."""
        return False


Patterns = Pattern | tuple[Pattern, ...]
"""One pattern for all layers, or one for each."""
