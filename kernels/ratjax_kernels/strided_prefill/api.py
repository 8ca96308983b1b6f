"""`strided_prefill`: the dilated pattern, for training and for prompts."""

from jaxtyping import Array, Float

from ratjax_kernels.checks import check_at_least, check_heads, check_shape
from ratjax_kernels.dispatch import Operation

_strided_prefill = Operation(
    "strided_prefill",
    "ratjax_kernels.strided_prefill",
    ("reference", "xla", "triton", "pallas_tpu"),
)


def strided_prefill(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T G D"],
    v: Float[Array, "B T G D"],
    dilation: int,
    local: int,
    initial: int,
    implementation: str | None = None,
) -> Float[Array, "B T H D"]:
    """Softmax attention of query i over every `dilation`-th, the recent and the first keys.

    Query i sees key j when j <= i and one of these holds: (j + 1) % dilation == 0,
    i - j <= local, j < initial. This is the pattern of the released RAT+ code (wimh966/rat-plus).
    Differentiable in `q`, `k` and `v`; the work is that of the keys seen, not of all pairs.

    Args:
      q: [B, T, H, D] queries.
      k: [B, T, G, D] keys.
      v: [B, T, G, D] values.
      dilation: distance of the strided keys; 1 is dense attention, -1 no strided keys.
      local: how many keys before its own a query sees; 0: its own only.
      initial: how many keys at the start every query sees.
      implementation: "reference", "xla", "triton", "pallas_tpu", or None for the best on the device
        that is compiled for.

    Returns:
      [B, T, H, D] in the dtype of `q`.

    Raises:
      ValueError: shapes that do not agree, a dilation other than -1 or at least 1, a negative
        `local` or `initial`, or an unknown implementation.
    """
    batch, length, heads, channels = q.shape
    check_shape("strided_prefill", "k", k, (batch, length, None, channels))
    check_shape("strided_prefill", "v", v, k.shape)
    check_heads("strided_prefill", heads, k.shape[2])
    if dilation != -1:
        check_at_least("strided_prefill", "dilation (or -1: no strided keys)", dilation, 1)
    check_at_least("strided_prefill", "local", local, 0)
    check_at_least("strided_prefill", "initial", initial, 0)
    return _strided_prefill(implementation, q, k, v, dilation, local, initial)
