"""Quest (arXiv 2406.10774): decode reads the K pages whose keys could score highest.

A page is a run of consecutive tokens, summarised by its channel-wise minimum and maximum
key; their product with the query bounds every key's score from above. Prefill is dense and
the whole cache is kept. Quest's kernels force the current page and count it in the budget;
the paper also forces the first.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from ratjax.errors import ConfigError, check_positive
from ratjax.shapes import Keys, Lengths, PromptKeys, Queries, Values
from ratjax.sparsity.cache import KVCache, PagedCache
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.pattern import Reads
from ratjax.sparsity.selection import (
    as_mask,
    check_forced,
    check_selection,
    fold_in,
    random_scores,
    share_over_group,
    steer,
)
from ratjax_kernels import page_bounds, page_scores, paged_decode, quest_decode
from ratjax_kernels.selection import select_pages


@partial(jax.jit, static_argnames=("page_size", "pages", "force_first", "force_current"))
def decode(
    q: Float[Array, "B 1 H D"],
    k: Keys,
    v: Values,
    lengths: Lengths,
    *,
    page_size: int,
    pages: int,
    force_first: bool = True,
    force_current: bool = True,
) -> tuple[Float[Array, "B 1 H D"], Bool[Array, "B H P"]]:
    """One decode step of Quest from a plain cache; page bounds are computed on the way.

    Args:
      q: queries, already rotated, [B, 1, H, D].
      k: cached keys, rotated, [B, S, G, D]; S need not be a multiple of `page_size`.
      v: cached values.
      lengths: valid keys of each row, the query's own included, int32 [B].
      page_size: tokens a page.
      pages: pages each query head reads, forced ones included. Rows with fewer valid pages
        keep them all.
      force_first: page 0 is always read.
      force_current: the page of the last valid key is always read.

    Returns:
      (attention's output [B, 1, H, D], the pages selected, bool [B, H, P]).

    Raises:
      ConfigError: more pages forced than kept, or a page size below 1.
    """
    pattern = Quest(page_size, pages, force_first, force_current)
    k_min, k_max = page_bounds(k, lengths, page_size)
    out, ids = pattern.read(q, PagedCache(k, v, lengths, k_min, k_max, page_size))
    return out, as_mask(ids, k_min.shape[1])


@dataclasses.dataclass(frozen=True)
class Quest(Dense):
    """Dense prefill; each decode step reads `pages` pages of `page_size` tokens.

    Attributes:
      page_size: tokens a page.
      pages: K, forced ones included.
      force_first: page 0 is always read (the paper; not in Quest itself).
      force_current: the newest page is always read (Quest's kernels).
      per: each `query_head` selects for itself, as if keys were repeated; or one selection
        per `kv_head`, by the mean score of its query heads.
      selector: `original`, or `random`: K pages drawn anew at every step, forced ones kept.
      dilation: every dilation-th key of the other pages is read too, as RAT+ combines the two; 0
        for none of them.
      golden: pages that the right answer is copied from are read always (`in`), or never but for
        forced ones (`out`); "" for neither.
    """

    page_size: int
    pages: int
    force_first: bool = True
    force_current: bool = True
    per: str = "query_head"
    selector: str = "original"
    dilation: int = 0
    golden: str = ""

    def __post_init__(self):
        check_positive("quest.page_size", self.page_size)
        if self.dilation < 0:
            raise ConfigError("quest.dilation", self.dilation, "must not be negative")
        check_forced("quest", "pages", self.pages, self.force_first + self.force_current)
        check_selection("quest", self.per, self.selector)

    def compress(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        lengths: Lengths,
        new_tokens: int,
        keys: PromptKeys | None = None,
    ) -> PagedCache:
        cache = KVCache.create(k, v, lengths, new_tokens)
        k_min, k_max = page_bounds(cache.k, lengths, self.page_size)
        return PagedCache(cache.k, cache.v, lengths, k_min, k_max, self.page_size)

    def adopt(
        self,
        prompt: KVCache,
        queries: Float[Array, "L B W H D"] | None,
        new_tokens: int,
        keys: PromptKeys | None = None,
        golden: Int32[Array, "B N"] | None = None,
    ) -> PagedCache:
        # One layer at a time: padding to whole pages copies what it pads.
        k_min, k_max = jax.lax.map(
            lambda layer: page_bounds(*layer, self.page_size), (prompt.k, prompt.lengths)
        )
        if self.golden:
            golden = jnp.broadcast_to(golden, (prompt.k.shape[0], *golden.shape))
        return PagedCache(
            prompt.k, prompt.v, prompt.lengths, k_min, k_max, self.page_size,
            golden=golden if self.golden else None,
        )  # fmt: skip

    def select(
        self,
        q: Float[Array, "B 1 H D"],
        cache: PagedCache,
        keys: PromptKeys | None = None,
    ) -> Int32[Array, "B H K"]:
        """The pages this step reads; see `ratjax_kernels.selection.select_pages`."""
        pages, kv_heads = cache.k_min.shape[-3:-1]
        if self.selector == "random":
            scores = random_scores(fold_in(keys, cache.lengths), (q.shape[2], pages))
        else:
            scores = page_scores(q, cache.k_min, cache.k_max, layer=cache.at)
        if self.per == "kv_head":
            scores = share_over_group(scores, kv_heads)
        if self.golden:
            pages_of = jnp.where(cache.golden < 0, -1, cache.golden // self.page_size)
            scores = steer(scores, pages_of, self.golden)
        return select_pages(
            scores,
            cache.lengths,
            page_size=self.page_size,
            pages=self.pages,
            force_first=self.force_first,
            force_current=self.force_current,
        )

    def read(
        self,
        q: Float[Array, "B 1 H D"],
        cache: KVCache,
        keys: PromptKeys | None = None,
        scored: PagedCache | None = None,
    ) -> tuple[Float[Array, "B 1 H D"], Int32[Array, "B H K"]]:
        """Attention's output and the pages it read; see `decode`."""
        plain = scored is None and not (self.dilation or self.golden)
        if self.selector == "original" and self.per == "query_head" and plain:
            return quest_decode(
                q, cache.k, cache.v, cache.lengths, cache.k_min, cache.k_max,
                self.page_size, self.pages, self.force_first, self.force_current, layer=cache.at,
            )  # fmt: skip
        ids = self.select(q, cache if scored is None else scored, keys)
        # A group that selects together has one list, and each of its pages is read once.
        group = q.shape[2] // cache.k.shape[-2] if self.per == "kv_head" else 1
        listed, size = ids[:, ::group], self.page_size
        if self.dilation:
            listed, size = self.slots(listed, cache.k.shape[-3]), 1
        out = paged_decode(q, cache.k, cache.v, cache.lengths, listed, size, layer=cache.at)
        return out, ids

    def slots(self, ids: Int32[Array, "B N K"], total: int) -> Int32[Array, "B N slots"]:
        """Each slot that is read once: those of the pages `ids`, then strided ones elsewhere.

        -1 where there are fewer; slots that hold nothing yet may be among them.
        """
        inside = ids[..., None] * self.page_size + jnp.arange(self.page_size, dtype=jnp.int32)
        inside = jnp.where(ids[..., None] < 0, -1, inside).reshape(*ids.shape[:2], -1)
        if not self.dilation:
            return inside
        strided = jnp.arange(self.dilation - 1, total, self.dilation, dtype=jnp.int32)
        pages = as_mask(ids, -(-total // self.page_size))
        apart = jnp.where(pages[..., strided // self.page_size], -1, strided)
        return jnp.concatenate([inside, apart], axis=-1)

    def holds(
        self,
        q: Float[Array, "B 1 H D"],
        cache: PagedCache,
        position: Int32[Array, " B"],
        keys: PromptKeys | None = None,
    ) -> Bool[Array, "B H"]:
        """Whether the pages that each head reads at this step hold a position."""
        slots = self.slots(self.select(q, cache, keys), cache.k.shape[-3])
        return (slots == position[:, None, None]).any(-1)

    def decode(
        self,
        q: Float[Array, "B 1 H D"],
        cache: KVCache,
        keys: PromptKeys | None = None,
        scored: PagedCache | None = None,
    ) -> tuple[Float[Array, "B 1 H D"], Reads]:
        """As in `Pattern`; pages are chosen by the bounds of `scored` where that is another."""
        out, ids = self.read(q, cache, keys, scored)
        lengths = cache.lengths[:, None, None]
        if self.dilation:
            slots = self.slots(ids, cache.k.shape[-3])
            tokens = (slots >= 0) & (slots < lengths)
        else:
            filled = jnp.clip(lengths - ids * self.page_size, 0, self.page_size)
            tokens = jnp.where(ids < 0, 0, filled)
        read = tokens.sum(-1).mean(-1, dtype=jnp.float32)
        return out, Reads(read, cache.lengths.astype(jnp.float32))
