"""Generation in two steps: one prefill, then an answer under every pattern that can start from it.

The cache of a batch of long prompts is most of a device's memory, so there is one of it. Prompts
are prefilled a few at a time into their rows of it; patterns that keep whole prompts decode in it,
behind the prompts, and it is rewound for the next by its lengths alone. Nothing large is copied.

On a mesh every device has its own prompts and heads throughout; answers are whole on all of them.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from ratjax.model.decoder import Decoder
from ratjax.model.generation import decode, greedy
from ratjax.model.state import DecodeState
from ratjax.model.storage import discard, reuse, shapes_of, whole
from ratjax.shapes import Lengths, PromptKeys, Tokens
from ratjax.sharding import active_mesh, constrain, serve_by_heads, sizes_of
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
    mesh = active_mesh()
    devices = 1 if mesh is None else sizes_of(mesh).batch_shards
    if rows % devices:
        raise ValueError(f"rows={rows} is no multiple of the {devices} parts of the batch")
    storage = reserve(model, batch, tokens.shape[1], pattern, new_tokens, storage)
    parts = []
    # A step reads prompts of every device: the next ones of those that are its own.
    for step in np.arange(batch).reshape(devices, -1, rows // devices).swapaxes(0, 1):
        some, start = step.ravel(), jnp.int32(step[0, 0])
        part = _prefill_rows(
            model, storage, tokens[some], lengths[some], keys[some], start, pattern, new_tokens
        )
        storage = part.cache
        parts.append(dataclasses.replace(part, cache=None))
    return dataclasses.replace(_joined(parts), cache=storage)


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
    cache = lambda *prompts: _prefill(*prompts, pattern, new_tokens).cache  # noqa: E731
    return reuse(storage, *shapes_of(cache, model, tokens, lengths, keys))


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
    reads = jax.tree.map(whole, reads)
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

    def place(caches: tuple, start: Int32[Array, ""]) -> tuple:
        into = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        return jax.tree.map(into, *caches), ()

    cache, _ = serve_by_heads(place, (storage, part.cache), start)
    return dataclasses.replace(part, cache=cache)


@jax.jit
def _joined(parts: list[Prefilled]) -> Prefilled:
    """The parts of a batch, without their caches, as one."""
    stacks = [(one.queries, one.memories) for one in parts]
    others = [(one.first, one.positions, one.last_token, one.reads) for one in parts]

    def join(stacks: list, others: list) -> tuple:
        return tuple(
            jax.tree.map(lambda *found, axis=axis: jnp.concatenate(found, axis), *values)
            for values, axis in ((stacks, 1), (others, 0))
        )

    (queries, memories), (*rest, reads) = serve_by_heads(join, stacks, others)
    return Prefilled(None, queries, memories, *rest, jax.tree.map(whole, reads))


def _apart(prefilled: Prefilled, pattern: Pattern) -> tuple[Cache, Prefilled]:
    """The cache, which is given up, and what else the pattern needs."""
    queries = prefilled.queries if pattern.window_queries else None
    return prefilled.cache, dataclasses.replace(prefilled, cache=None, queries=queries)


def _adopt(
    cache: Cache,
    prefilled: Prefilled,
    pattern: Pattern,
    new_tokens: int,
    keys: PromptKeys,
    golden: Int32[Array, "B N"] | None,
) -> Cache:
    """The pattern's own cache, from the prompts' raw keys and values too where it uses them."""
    states_alone = isinstance(cache, BothCaches) and not pattern.uses_raw

    def adopt(prompts: tuple, keys: PromptKeys, golden: Int32[Array, "B N"] | None) -> tuple:
        return pattern.adopt(*prompts, new_tokens, keys, golden), ()

    prompts = cache.states if states_alone else cache, prefilled.queries
    return serve_by_heads(adopt, prompts, keys, golden)[0]


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
    tokens, reads = jax.tree.map(whole, (tokens, reads))
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
    answers, needed = (constrain(a, "batch", None) for a in (answers, needed))
    prompt = constrain(prefilled.positions, "batch")
    by_layer = lambda a: jnp.broadcast_to(a, (layers, *a.shape))  # noqa: E731
    # A step reads one token and gives the next: the first step needs what the second stands at.
    watched = WatchedCache(adopted, by_layer(needed[:, 1:]), by_layer(prompt))
    state = DecodeState((watched,), prefilled.memories, prefilled.positions, prefilled.last_token)
    all_hit = jnp.ones((layers, batch, model.config.num_heads), bool)
    all_hit = constrain(all_hit, "layers", "batch", "heads")

    def advance(carry, token):
        state, hits = carry
        _, state, reads = model.decode(token[:, None], state, Watched(pattern), keys)
        return (state, hits & reads.hits[..., 0]), None

    (state, hits), _ = jax.lax.scan(advance, (state, all_hit), answers[:, :-1].T)
    return whole(hits), _restore(cache, state.caches[0].cache, pattern)
