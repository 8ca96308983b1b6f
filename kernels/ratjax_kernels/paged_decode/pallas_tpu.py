"""Quest's decode through the TPU kernels of this package.

Caches are read with the heads before the slots, [L, B, G, S, D], so that a head's page is one
contiguous copy: 16 KiB for 64 slots of 128 bfloat16 channels. Within one program that is a matter
of layout and moves nothing: XLA lets a loop carry the cache in the order in which its kernels read
it, if what appends to it (`ratjax_kernels.cache_append.pallas_tpu`) writes in that order too. A
call on its own pays for a copy of the cache.

Lists: one a query head is served by the union of a group's lists, so that a page which several
heads chose is read once; where every head has keys of its own the union is the list. 32 lists of 16
such pages are 16 MiB, 20 us of a v5e's 0.82 TB/s and 7 us of a v5p's 2.46 TB/s, in 1024 copies.
Pages of 16 slots are copies of 4 KiB, where starting copies costs more than they do. These are
estimates: nothing was timed on a TPU.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ratjax_kernels.batching import merge_vmap
from ratjax_kernels.layers import as_stack, merge_layers
from ratjax_kernels.paged_decode import pallas_bounds, pallas_kernels, pallas_select
from ratjax_kernels.pallas_call import LANES, Kernel, dtype_problem, pad_to, rows_of_tile

# Slots and pages of a tile; tiles that are under way or attended to. A tile of 1024 slots is long
# enough for its two products and one softmax, which wait for each other, to hide behind the copies.
_SLOTS, _PAGES, _BUFFERS = 1024, 32, 3
# Of scalar memory (1 MiB), what lists may take.
_LIST_BYTES = 2**19


def limits_of_page_bounds(k, lengths, page_size):
    """See `ratjax_kernels.dispatch.Operation`."""
    problem = dtype_problem(k)
    if problem:
        return problem
    if page_size % rows_of_tile(k.dtype):
        return f"serves page sizes that are multiples of {rows_of_tile(k.dtype)}, not {page_size}"
    return pallas_bounds.bounds(jax.eval_shape(_heads_first, k), page_size).problem()


def page_bounds(k, lengths, page_size):
    """See `ratjax_kernels.paged_decode.api`."""

    @merge_vmap
    def run(k, lengths):
        k = _heads_first(k)
        return tuple(map(_heads_first, pallas_bounds.bounds(k, page_size)(lengths, k)))

    return run(k, lengths)


def limits_of_page_scores(q, k_min, k_max, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    _, k_min, k_max = jax.eval_shape(as_stack, layer, k_min, k_max)
    return dtype_problem(q, k_min, k_max) or _scores_problem(q, k_min)


def _scores_problem(q, k_min):
    grouped = jax.eval_shape(functools.partial(_grouped, kv_heads=k_min.shape[3]), q)
    return pallas_bounds.scores(grouped, jax.eval_shape(_heads_first, k_min)).problem()


def page_scores(q, k_min, k_max, layer):
    """See `ratjax_kernels.paged_decode.api`."""
    return _scores(*as_stack(layer, k_min, k_max), q)


@merge_layers(stacked=2)
def _scores(layer, k_min, k_max, q):
    k_min, k_max = map(_heads_first, (k_min, k_max))
    grouped = _grouped(q, k_min.shape[2])
    (out,) = pallas_bounds.scores(grouped, k_min)(layer.reshape(1), grouped, k_min, k_max)
    batch, _, heads, _ = q.shape
    return out[:, :, : heads // k_min.shape[2]].reshape(batch, heads, -1)


def limits_of_paged_decode(q, k, v, lengths, page_ids, page_size, layer):
    """See `ratjax_kernels.dispatch.Operation`."""
    _, k, v = jax.eval_shape(as_stack, layer, k, v)
    pages = -(-k.shape[2] // page_size)
    lists, listed = page_ids.shape[1:]
    group = lists // k.shape[3]
    return _problem(q, k, v, page_size, listed if group == 1 else min(group * listed, pages))


def _problem(q, k, v, page_size, listed):
    batch, slots, kv_heads, _ = k.shape[1:]
    problem = dtype_problem(q, k, v)
    if problem:
        return problem
    tile = _tile(k, v)
    if slots % tile and slots > _rows(page_size, tile):
        return f"serves caches of a multiple of {tile} slots, not {slots}"
    if 4 * batch * kv_heads * listed > _LIST_BYTES:
        return f"lists {batch * kv_heads * listed} pages, of {_LIST_BYTES // 4} in scalar memory"
    return _kernel(q, k, v, listed, page_size)[1].problem()


def paged_decode(q, k, v, lengths, page_ids, page_size, layer):
    """See `ratjax_kernels.paged_decode.api`."""

    @merge_layers(stacked=2)
    def run(layer, k, v, q, lengths, page_ids):
        return _attend(layer, k, v, q, lengths, page_ids, page_size)

    return run(*as_stack(layer, k, v), q, lengths, page_ids)


def limits_of_quest_decode(
    q, k, v, lengths, k_min, k_max, page_size, pages, force_first, force_current, layer
):
    """See `ratjax_kernels.dispatch.Operation`."""
    _, k, v, k_min, k_max = jax.eval_shape(as_stack, layer, k, v, k_min, k_max)
    group = q.shape[2] // k.shape[3]
    listed = pages if group == 1 else min(group * pages, k_min.shape[-3])
    scores = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], k_min.shape[-3]), jnp.float32)
    return (
        dtype_problem(k_min, k_max)
        or _problem(q, k, v, page_size, listed)
        or _scores_problem(q, k_min)
        or pallas_select.kernel(scores, page_size, pages, force_first, force_current).problem()
    )


def quest_decode(
    q, k, v, lengths, k_min, k_max, page_size, pages, force_first, force_current, layer
):
    """See `ratjax_kernels.paged_decode.api`."""

    @merge_vmap
    def select(scores, lengths):
        return pallas_select.select(scores, lengths, page_size, pages, force_first, force_current)

    ids = select(page_scores(q, k_min, k_max, layer), lengths)
    return paged_decode(q, k, v, lengths, ids, page_size, layer), ids


def _attend(layer, k, v, q, lengths, page_ids, page_size):
    slots, kv_heads = k.shape[2:4]
    lengths = jnp.minimum(lengths, slots)  # a full sequence has dropped tokens
    group = q.shape[2] // kv_heads
    pages, times = lists_of_groups(page_ids, kv_heads, -(-slots // page_size))
    layout, kernel = _kernel(q, k, v, pages.shape[2], page_size)
    pages = pad_to(pages, 2, layout.listed, -1)
    place = jnp.arange(1, layout.listed + 1, dtype=jnp.int32)
    sizes = jnp.max(jnp.where(pages >= 0, place, 0), axis=2)
    queries, width = kernel.inputs[1].shape[2:]
    times = jnp.broadcast_to(times, (*times.shape[:2], group, times.shape[3]))
    times = pad_to(pad_to(times, 2, queries), 3, width)
    (out,) = kernel(
        layer.reshape(1), lengths, sizes.reshape(-1), pages.reshape(-1),
        _grouped(q, kv_heads), times, *map(_heads_first, (k, v)),
    )  # fmt: skip
    return out[:, :, :group].reshape(q.shape)


def _kernel(q, k, v, listed, page_size):
    """(`pallas_kernels.Layout`, the kernel) for caches [L, B, S, G, D]."""
    batch, _, heads, channels = q.shape
    slots, kv_heads = k.shape[2:4]
    tile = _tile(k, v)
    rows = min(_rows(page_size, tile), slots)
    chunk = 1
    while chunk < min(_PAGES, listed) and 2 * chunk * rows <= _SLOTS:
        chunk *= 2
    layout = pallas_kernels.Layout(
        page_size, rows, tile, slots, chunk, -(-listed // chunk) * chunk, kv_heads
    )
    # Two cores of one chip share the parallel axes.
    parts = 2 if batch == 1 and kv_heads % 2 == 0 else 1
    queries = pallas_bounds.rows_of_queries(heads // kv_heads)

    def block(width):
        return pl.BlockSpec(
            (None, kv_heads // parts, queries, width), lambda b, part, *_: (b, part, 0, 0)
        )

    def shape(width, dtype):
        return jax.ShapeDtypeStruct((batch, kv_heads, queries, width), dtype)

    width = -(-layout.listed // LANES) * LANES
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return layout, Kernel(
        functools.partial(pallas_kernels.attend_kernel, layout),
        "paged_decode",
        (batch, parts),
        (shape(channels, q.dtype), shape(width, jnp.float32), k, v),
        (block(channels), block(width), anywhere, anywhere),
        (shape(channels, q.dtype),),
        (block(channels),),
        scratch=(
            *(pltpu.VMEM((_BUFFERS, chunk * rows, channels), x.dtype) for x in (k, v)),
            pltpu.SemaphoreType.DMA((_BUFFERS, 2)),
        ),
        scalars=4,
        semantics=("parallel", "parallel"),
        cost=pl.CostEstimate(
            flops=4 * batch * heads * listed * rows * channels,
            transcendentals=batch * heads * listed * rows,
            bytes_accessed=batch * kv_heads * listed * rows * channels * _bytes_of(k, v),
        ),
    )


def lists_of_groups(page_ids, kv_heads, pages):
    """One list a key/value head: the union of what its query heads list.

    Args:
      page_ids: int32 [B, N, K], N a multiple of `kv_heads`.
      pages: of the cache.

    Returns:
      (int32 [B, G, U] pages, in any order, -1 among them; float32 [B, G, R, U] how often each of
      the R = N / G lists names them).
    """
    batch, lists, listed = page_ids.shape
    group = lists // kv_heads
    page_ids = page_ids.reshape(batch, kv_heads, group, listed)
    if group == 1:
        return page_ids[:, :, 0], (page_ids >= 0).astype(jnp.float32)
    page = jnp.arange(pages, dtype=jnp.int32)
    times = jnp.sum(page_ids[..., None] == page, axis=3, dtype=jnp.int32)  # [B, G, R, P]
    named = jnp.any(times > 0, axis=2)
    place = jnp.where(named, jnp.cumsum(named, axis=2, dtype=jnp.int32) - 1, -1)  # [B, G, P]
    here = place[:, :, None] == jnp.arange(min(group * listed, pages), dtype=jnp.int32)[:, None]
    union = jnp.sum(jnp.where(here, page + 1, 0), axis=3) - 1  # [B, G, U]
    counts = jnp.sum(jnp.where(here[:, :, None], times[:, :, :, None], 0), axis=4)
    return union, counts.astype(jnp.float32)


def _tile(k, v):
    """Copies start at multiples of it."""
    return max(rows_of_tile(x.dtype) for x in (k, v))


def _bytes_of(*arrays):
    """Of one number of each."""
    return sum(x.dtype.itemsize for x in arrays)


def _rows(page_size, tile):
    """Slots that hold any page, from a multiple of `tile` on."""
    return page_size if page_size % tile == 0 else -(-page_size // tile) * tile + tile


def _heads_first(x):
    """[..., S, G, D] -> [..., G, S, D], and back."""
    return jnp.swapaxes(x, -3, -2)


def _grouped(q, kv_heads):
    """[B, 1, H, D] -> [B, G, R, D], R padded to whole registers."""
    batch, _, heads, channels = q.shape
    group = heads // kv_heads
    q = q.reshape(batch, kv_heads, group, channels)
    return pad_to(q, 2, pallas_bounds.rows_of_queries(group))
