"""Quest's page bounds and scores, and exact attention over a list of pages.

Page p holds the slots p * page_size .. (p + 1) * page_size - 1; the last may be partial. The bounds
and the score are those of "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference"
(arXiv 2406.10774), section 3.
"""

from jaxtyping import Array, Float, Float32, Int32

from ratjax_kernels.checks import check_at_least, check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_page_bounds = Operation(
    "page_bounds", "ratjax_kernels.paged_decode", ("reference", "xla", "pallas_tpu")
)
_KERNELS = ("reference", "xla", "pallas_tpu", "triton")
_page_scores = Operation("page_scores", "ratjax_kernels.paged_decode", _KERNELS)
_paged_decode = Operation("paged_decode", "ratjax_kernels.paged_decode", _KERNELS)
_quest_decode = Operation("quest_decode", "ratjax_kernels.paged_decode", _KERNELS)


def page_bounds(
    k: Float[Array, "B S G D"],
    lengths: Int32[Array, " B"],
    page_size: int,
    implementation: str | None = None,
) -> tuple[Float[Array, "B P G D"], Float[Array, "B P G D"]]:
    """The least and greatest key of each page and channel, over the valid slots.

    A page without valid slots gets the bounds (+inf, -inf): the neutral elements, so a new key is
    appended by `minimum` and `maximum`, and `page_scores` knows the page as empty.

    Args:
      k: [B, S, G, D] keys as attention sees them (after rotary embedding).
      lengths: int32 [B], filled slots.
      page_size: slots of a page.
      implementation: "reference", "xla", "pallas_tpu", or None for the best on the default device.

    Returns:
      (k_min, k_max), each [B, ceil(S / page_size), G, D] in the keys' dtype.

    Raises:
      ValueError: shapes that do not agree, a page size below 1, or an unknown implementation.
    """
    check_shape("page_bounds", "k", k, (None, None, None, None))
    check_shape("page_bounds", "lengths", lengths, (k.shape[0],))
    check_at_least("page_bounds", "page_size", page_size, 1)
    return _page_bounds(implementation, k, lengths, page_size)


def page_scores(
    q: Float[Array, "B 1 H D"],
    k_min: Float[Array, "*L B P G D"],
    k_max: Float[Array, "*L B P G D"],
    implementation: str | None = None,
    *,
    layer: Int32[Array, ""] | None = None,
) -> Float32[Array, "B H P"]:
    """An upper bound of q . k over each page: sum over channels of max(q k_min, q k_max).

    Args:
      q: [B, 1, H, D] queries.
      k_min: [B, P, G, D] least keys, from `page_bounds`; or those of several layers.
      k_max: greatest keys, of the same shape.
      implementation: "reference", "xla", "pallas_tpu", "triton", or None for the best here.
      layer: which of the layers, int32 []. None: there is only one.

    Returns:
      float32 [B, H, P]; -inf for empty pages, never NaN.

    Raises:
      ValueError: shapes that do not agree, or an unknown implementation.
    """
    batch, _, heads, channels = q.shape
    check_shape("page_scores", "q", q, (batch, 1, heads, channels))
    layers = () if layer is None else (None,)
    check_shape("page_scores", "k_min", k_min, (*layers, batch, None, None, channels))
    check_shape("page_scores", "k_max", k_max, k_min.shape)
    check_heads("page_scores", heads, k_min.shape[-2])
    return _page_scores(implementation, q, k_min, k_max, layer)


def paged_decode(
    q: Float[Array, "B 1 H D"],
    k: Float[Array, "*L B S G D"],
    v: Float[Array, "*L B S G D"],
    lengths: Int32[Array, " B"],
    page_ids: Int32[Array, "B N K"],
    page_size: int,
    implementation: str | None = None,
    *,
    layer: Int32[Array, ""] | None = None,
) -> Float[Array, "B 1 H D"]:
    """Exact softmax attention of one query over the valid slots of its listed pages.

    Only listed pages are read: keys and values elsewhere (NaN included) have no influence.

    Args:
      q: [B, 1, H, D] queries.
      k: [B, S, G, D] keys, or those of several layers; S need not be a multiple of `page_size`.
      v: values, of the same shape.
      lengths: int32 [B], filled slots.
      page_ids: int32 [B, H, K], or [B, G, K] for one list a key/value head; -1 lists nothing. A
        page listed twice counts twice.
      page_size: slots of a page.
      implementation: "reference", "xla", "pallas_tpu", "triton", or None for the best here.
      layer: which of the layers, int32 []. None: there is only one.

    Returns:
      [B, 1, H, D] in the dtype of `q`; zeros where the list holds no valid slot.

    Raises:
      ValueError: shapes that do not agree, a page size below 1, or an unknown implementation.
    """
    batch, _, heads, channels = q.shape
    check_shape("paged_decode", "q", q, (batch, 1, heads, channels))
    layers = () if layer is None else (None,)
    check_shape("paged_decode", "k", k, (*layers, batch, None, None, channels))
    check_shape("paged_decode", "v", v, k.shape)
    check_shape("paged_decode", "lengths", lengths, (batch,))
    check_heads("paged_decode", heads, k.shape[-2])
    check_at_least("paged_decode", "page_size", page_size, 1)
    lists = heads if page_ids.shape[1] == heads else k.shape[-2]
    check_shape("paged_decode", "page_ids", page_ids, (batch, lists, None))
    return _paged_decode(implementation, q, k, v, lengths, page_ids, page_size, layer)


def quest_decode(
    q: Float[Array, "B 1 H D"],
    k: Float[Array, "*L B S G D"],
    v: Float[Array, "*L B S G D"],
    lengths: Int32[Array, " B"],
    k_min: Float[Array, "*L B P G D"],
    k_max: Float[Array, "*L B P G D"],
    page_size: int,
    pages: int,
    force_first: bool = True,
    force_current: bool = True,
    implementation: str | None = None,
    *,
    layer: Int32[Array, ""] | None = None,
) -> tuple[Float[Array, "B 1 H D"], Int32[Array, "B H K"]]:
    """Quest's decode step: score the pages, choose `pages` of them a query head, attend to those.

    The same as `page_scores`, `ratjax_kernels.selection.select_pages` and `paged_decode` one after
    the other.

    Args:
      q: [B, 1, H, D] queries.
      k: [B, S, G, D] keys, or those of several layers, [L, B, S, G, D].
      v: values, of the same shape.
      lengths: int32 [B], filled slots.
      k_min: [B, P, G, D] or [L, B, P, G, D] least keys, from `page_bounds`.
      k_max: greatest keys, of the same shape.
      page_size: slots of a page.
      pages: K, pages a query head reads, forced ones included.
      force_first: page 0 is always read.
      force_current: the page of the last filled slot is always read.
      implementation: "reference", "xla", "pallas_tpu", "triton", or None for the best here.
      layer: which of the layers, int32 []. None: there is only one.

    Returns:
      ([B, 1, H, D] in the dtype of `q`, the pages read: ascending, then -1 where there are fewer).

    Raises:
      ValueError: shapes that do not agree, a page size or count below 1, or an unknown
        implementation.
    """
    batch, _, heads, channels = q.shape
    layers = () if layer is None else (None,)
    check_shape("quest_decode", "q", q, (batch, 1, heads, channels))
    check_shape("quest_decode", "k", k, (*layers, batch, None, None, channels))
    check_shape("quest_decode", "v", v, k.shape)
    check_shape("quest_decode", "lengths", lengths, (batch,))
    check_heads("quest_decode", heads, k.shape[-2])
    check_at_least("quest_decode", "page_size", page_size, 1)
    check_at_least("quest_decode", "pages", pages, 1)
    shape = (*k.shape[:-3], -(-k.shape[-3] // page_size), *k.shape[-2:])
    check_shape("quest_decode", "k_min", k_min, shape)
    check_shape("quest_decode", "k_max", k_max, shape)
    return _quest_decode(
        implementation, q, k, v, lengths, k_min, k_max,
        page_size, pages, force_first, force_current, layer,
    )  # fmt: skip
