"""`decay_scan` over a sequence, and `decay_step` for one token.

For each position t and channel, in float32 and with one gate for keys and values:

    h_t = s(gate_t) h_{t-1} + (1 - s(gate_t)) x_t,        s: the logistic function

This is equation 1 of "Augmenting Attention with Exponentially Decaying Memory Improves Query-Aware
KV Sparsity" (arXiv 2605.28640).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ratjax_kernels.checks import check_shape
from ratjax_kernels.dispatch import Operation

_decay_scan = Operation(
    "decay_scan", "ratjax_kernels.scan", ("reference", "xla", "triton", "pallas_tpu")
)


def decay_scan(
    gate_logits: Float[Array, "B T G D"],
    k: Float[Array, "B T G D"],
    v: Float[Array, "B T G D"],
    initial_state: tuple[Float[Array, "B G D"], Float[Array, "B G D"]] | None = None,
    return_state: bool = False,
    implementation: str | None = None,
):
    """Keys and values with memory: the gated running average of each over time.

    Differentiable in every array argument and through the returned state. A gate logit of +inf
    keeps the state as it is, one of -inf passes the input through unchanged.

    Args:
      gate_logits: [B, T, G, D] gates before the logistic function; 0 forgets half at each step.
      k: [B, T, G, D] keys.
      v: [B, T, G, D] values.
      initial_state: (k_0, v_0), each [B, G, D], the averages before the first position; None: zero.
      return_state: also return the averages after the last position.
      implementation: "reference", "xla", "triton", or None for the best on the default device.

    Returns:
      (k_mem, v_mem), each [B, T, G, D] in the dtype of `k` and of `v`; with `return_state`,
      ((k_mem, v_mem), (k_T, v_T)), the last two [B, G, D] in float32.

    Raises:
      ValueError: shapes that do not agree, an empty sequence, or an unknown implementation.
    """
    shape = tuple(k.shape)
    if len(shape) != 4 or shape[1] == 0:
        raise ValueError(f"decay_scan: k has shape {shape}, must be [B, T, G, D] with T at least 1")
    check_shape("decay_scan", "gate_logits", gate_logits, shape)
    check_shape("decay_scan", "v", v, shape)
    state_shape = (shape[0], *shape[2:])
    if initial_state is None:
        k_0 = v_0 = jnp.zeros(state_shape, jnp.float32)
    else:
        k_0, v_0 = (jnp.asarray(x, jnp.float32) for x in initial_state)
        check_shape("decay_scan", "initial_state[0]", k_0, state_shape)
        check_shape("decay_scan", "initial_state[1]", v_0, state_shape)
    k_mem, v_mem, k_last, v_last = _decay_scan(implementation, gate_logits, k, v, k_0, v_0)
    return ((k_mem, v_mem), (k_last, v_last)) if return_state else (k_mem, v_mem)


def decay_step(
    gate_logits: Float[Array, "B G D"],
    k: Float[Array, "B G D"],
    v: Float[Array, "B G D"],
    state: tuple[Float32[Array, "B G D"], Float32[Array, "B G D"]],
) -> tuple[
    tuple[Float[Array, "B G D"], Float[Array, "B G D"]],
    tuple[Float32[Array, "B G D"], Float32[Array, "B G D"]],
]:
    """One position of `decay_scan`, for decoding token by token.

    Args:
      gate_logits: [B, G, D] gates of the new token before the logistic function.
      k: [B, G, D] its keys.
      v: [B, G, D] its values.
      state: (k, v) averages after the token before it, float32.

    Returns:
      (k_mem, v_mem) in the inputs' dtypes, and the state after the token, in float32.

    Raises:
      ValueError: shapes that do not agree.
    """
    shape = tuple(k.shape)
    for name, array in (("gate_logits", gate_logits), ("v", v), ("state[0]", state[0])):
        check_shape("decay_step", name, array, shape)
    logits = gate_logits.astype(jnp.float32)
    # 1 - s(x) = s(-x): subtracting would lose the small weights of gates near one.
    keep, take = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    k_new = keep * state[0] + take * k.astype(jnp.float32)
    v_new = keep * state[1] + take * v.astype(jnp.float32)
    return (k_new.astype(k.dtype), v_new.astype(v.dtype)), (k_new, v_new)
