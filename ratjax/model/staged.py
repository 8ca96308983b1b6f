"""Generation in two steps: one prefill, then an answer under every pattern that can start from it.

The cache of a batch of long prompts is most of a device's memory, so there is one of it. Prompts
are prefilled a few at a time into their rows of it; patterns that keep whole prompts decode in it,
behind the prompts, and it is rewound for the next by its lengths alone. Nothing large is copied.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from ratjax.model.decoder import Decoder
from ratjax.model.generation import decode, greedy
from ratjax.model.state import DecodeState
from ratjax.shapes import Lengths, PromptKeys, Tokens
from ratjax.sparsity.cache import PromptCache
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Cache, Pattern, Reads
from ratjax.sparsity.shared import SharedDense
from ratjax.sparsity.swapped import BothCaches
from ratjax.sparsity.watched import Watched, WatchedCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """A batch of prompts that have been read.

    Attributes:
      cache: keys and values stacked over layers, raw ones beside the memory's states where a
        pattern uses them (`Pattern.uses_raw`). Given up to `answer`, which returns it.
      queries: each prompt's last queries in every layer, [L, B, W, H, D]; None without SnapKV.
      memories: the memory's states after the prompts; None without a memory.
      first: the token that follows each prompt.
      positions: tokens of each prompt.
      last_token: the prompts' last tokens, [B, 1].
      reads: entries read, averaged over layers.
    """

    cache: Cache
    queries: Float[Array, "L B W H D"] | None
    memories: tuple
    first: Int32[Array, " B"]
    positions: Lengths
    last_token: Int32[Array, "B 1"]
    reads: Reads


def prefill_pattern(patterns: Iterable[Pattern]) -> Pattern:
    """One prefill for patterns whose `prefills_as` is the same.

    Raises:
      ValueError: it is not the same.
    """
    patterns = list(patterns)
    kinds = {pattern.prefills_as for pattern in patterns}
    if len(kinds) != 1:
        raise ValueError(f"no prefill is that of all of {patterns}")
    kind = kinds.pop()
    window = max(pattern.window_queries for pattern in patterns)
    raw = any(pattern.uses_raw for pattern in patterns)
    return SharedDense(window, raw) if kind == Dense() and (window or raw) else kind


def prefill(
    model: Decoder,
    tokens: Tokens,
    lengths: Lengths,
    keys: PromptKeys,
    pattern: Pattern,
    new_tokens: int,
    rows: int,
    storage: Cache | None = None,
) -> Prefilled:
    """Reads a batch of prompts, `rows` of them at a time.

    Args:
      model: the decoder.
      tokens: prompts padded on the right.
      lengths: tokens of each.
      keys: one random key a prompt.
      pattern: that of `prefill_pattern`.
      new_tokens: the most tokens an answer has: the cache has room for them.
      rows: prompts a step; divides the batch. All of them in one step need no storage, and
        what is given is freed.
      storage: the cache of an earlier batch, to be overwritten; what does not fit is dropped.
    """
    batch = tokens.shape[0]
    if batch % rows:
        raise ValueError(f"rows={rows} does not divide the batch of {batch}")
    if rows == batch:
        discard(storage)
        return _prefill(model, tokens, lengths, keys, pattern, new_tokens)
    storage = reserve(model, batch, tokens.shape[1], pattern, new_tokens, storage)
    parts = []
    for start in range(0, batch, rows):
        some = slice(start, start + rows)
        part = _prefill_rows(
            model, storage, tokens[some], lengths[some], keys[some], jnp.int32(start),
            pattern, new_tokens,
        )  # fmt: skip
        storage = part.cache
        parts.append(dataclasses.replace(part, cache=None))
    layered = ("queries", "memories")  # batch is their second axis

    def joined(name: str):
        axis = 1 if name in layered else 0
        values = [getattr(part, name) for part in parts]
        return jax.tree.map(lambda *found: jnp.concatenate(found, axis), *values)

    names = [f.name for f in dataclasses.fields(Prefilled) if f.name != "cache"]
    return Prefilled(cache=storage, **{name: joined(name) for name in names})


def answer(
    model: Decoder,
    prefilled: Prefilled,
    keys: PromptKeys,
    stop: Int32[Array, ""],
    pattern: Pattern,
    new_tokens: int,
    golden: Int32[Array, "B A"] | None = None,
) -> tuple[Int32[Array, "B N"], Reads, Prefilled]:
    """Greedy answers under `pattern`, whose `prefills_as` made `prefilled`.

    `golden` is for patterns that are steered: see `Pattern.adopt`.

    Returns:
      (tokens, entries read while decoding, the prefilled prompts again). The cache that was
      passed in is given up.
    """
    tokens, reads, cache = _answer(
        model, *_apart(prefilled, pattern), keys, stop, pattern.decodes_as, new_tokens, golden
    )
    return tokens, reads, dataclasses.replace(prefilled, cache=cache)


def watch(
    model: Decoder,
    prefilled: Prefilled,
    keys: PromptKeys,
    answers: Int32[Array, "B N"],
    needed: Int32[Array, "B N"],
    pattern: Pattern,
    new_tokens: int,
) -> tuple[Bool[Array, "L B H"], Prefilled]:
    """Which heads' selections held all that given answers needed, in teacher-forced decoding.

    Args:
      model: the decoder.
      prefilled: prompts, as for `answer`.
      keys: one random key a prompt.
      answers: the right answers' tokens; after their end anything.
      needed: the position of the prompt that each of these tokens stands at, -1 for none. The first
        comes from prefill, so it is not counted.
      pattern: one with a selection in decoding: Quest or SnapKV.
      new_tokens: as when `prefilled` was made, at least N.

    Returns:
      (the paper's strict hit of every layer, prompt and head; the prefilled prompts again).
    """
    hits, cache = _watch(
        model, *_apart(prefilled, pattern), keys, answers, needed, pattern, new_tokens
    )
    return hits, dataclasses.replace(prefilled, cache=cache)


def reserve(
    model: Decoder,
    batch: int,
    width: int,
    pattern: Pattern,
    new_tokens: int,
    storage: Cache | None = None,
) -> Cache:
    """A cache for `prefill` to fill: `storage`, or where that has other shapes, zeros in its stead.

    What does not fit is freed first: there may not be room for both.
    """
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((batch, width), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    structure = None

    def leaves(*args):
        nonlocal structure
        cache = _prefill(*args, pattern, new_tokens).cache
        structure = jax.tree.structure(cache)
        return jax.tree.leaves(cache)

    wanted = [(a.shape, a.dtype) for a in jax.eval_shape(leaves, model, tokens, lengths, keys)]
    held = jax.tree.leaves(storage)
    fits = jax.tree.structure(storage) == structure
    if fits and [(a.shape, a.dtype) for a in held] == wanted:
        return storage
    discard(storage)
    return jax.tree.unflatten(structure, [jnp.zeros(*each) for each in wanted])


def discard(cache: Cache | None) -> None:
    """Frees a cache's memory now, whoever still refers to it."""
    for array in jax.tree.leaves(cache):
        array.delete()


@partial(jax.jit, static_argnames=("pattern", "new_tokens"))
def _prefill(
    model: Decoder,
    tokens: Tokens,
    lengths: Lengths,
    keys: PromptKeys,
    pattern: Pattern,
    new_tokens: int,
) -> Prefilled:
    logits, state, reads = model.prefill(tokens, lengths, pattern, new_tokens, keys)
    (cache,) = state.caches
    queries = None
    if isinstance(cache, PromptCache):
        cache, queries = cache.cache, cache.queries
    return Prefilled(
        cache, queries, state.memories, greedy(logits), state.positions, state.last_token, reads
    )


@partial(jax.jit, static_argnames=("pattern", "new_tokens"), donate_argnames="storage")
def _prefill_rows(
    model: Decoder,
    storage: Cache,
    tokens: Tokens,
    lengths: Lengths,
    keys: PromptKeys,
    start: Int32[Array, ""],
    pattern: Pattern,
    new_tokens: int,
) -> Prefilled:
    part = _prefill(model, tokens, lengths, keys, pattern, new_tokens)
    place = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
    return dataclasses.replace(part, cache=jax.tree.map(place, storage, part.cache))


def _apart(prefilled: Prefilled, pattern: Pattern) -> tuple[Cache, Prefilled]:
    """The cache, which is given up, and what else the pattern needs."""
    queries = prefilled.queries if pattern.window_queries else None
    return prefilled.cache, dataclasses.replace(prefilled, cache=None, queries=queries)


def _adopt(cache: Cache, prefilled: Prefilled, pattern: Pattern, *rest: Any) -> Cache:
    """The pattern's own cache, from the prompts' raw keys and values too where it uses them."""
    states_alone = isinstance(cache, BothCaches) and not pattern.uses_raw
    return pattern.adopt(cache.states if states_alone else cache, prefilled.queries, *rest)


def _restore(cache: Cache, used: Cache, pattern: Pattern) -> Cache:
    """What `_adopt` was given, from what it returned and decoding has changed."""
    if isinstance(cache, BothCaches) and not pattern.uses_raw:
        return dataclasses.replace(cache, states=pattern.restore(cache.states, used))
    return pattern.restore(cache, used)


@partial(jax.jit, static_argnames=("pattern", "new_tokens"), donate_argnames="cache")
def _answer(
    model: Decoder,
    cache: Cache,
    prefilled: Prefilled,
    keys: PromptKeys,
    stop: Int32[Array, ""],
    pattern: Pattern,
    new_tokens: int,
    golden: Int32[Array, "B A"] | None,
) -> tuple[Int32[Array, "B N"], Reads, Cache]:
    adopted = _adopt(cache, prefilled, pattern, new_tokens, keys, golden)
    state = DecodeState((adopted,), prefilled.memories, prefilled.positions, prefilled.last_token)
    tokens, reads, state = decode(model, prefilled.first, state, keys, stop, new_tokens, pattern)
    return tokens, reads, _restore(cache, state.caches[0], pattern)


@partial(jax.jit, static_argnames=("pattern", "new_tokens"), donate_argnames="cache")
def _watch(
    model: Decoder,
    cache: Cache,
    prefilled: Prefilled,
    keys: PromptKeys,
    answers: Int32[Array, "B N"],
    needed: Int32[Array, "B N"],
    pattern: Pattern,
    new_tokens: int,
) -> tuple[Bool[Array, "L B H"], Cache]:
    adopted = _adopt(cache, prefilled, pattern, new_tokens, keys, needed)
    layers, batch = model.config.num_layers, len(answers)
    by_layer = lambda a: jnp.broadcast_to(a, (layers, *a.shape))  # noqa: E731
    # A step reads one token and gives the next: the first step needs what the second stands at.
    watched = WatchedCache(adopted, by_layer(needed[:, 1:]), by_layer(prefilled.positions))
    state = DecodeState((watched,), prefilled.memories, prefilled.positions, prefilled.last_token)
    all_hit = jnp.ones((layers, batch, model.config.num_heads), bool)

    def advance(carry, token):
        state, hits = carry
        _, state, reads = model.decode(token[:, None], state, Watched(pattern), keys)
        return (state, hits & reads.hits), None

    (state, hits), _ = jax.lax.scan(advance, (state, all_hit), answers[:, :-1].T)
    return hits, _restore(cache, state.caches[0].cache, pattern)
