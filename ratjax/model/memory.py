"""The exponentially decaying memory: a gate, and the recurrence it drives over keys and values."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float32

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.model.layers import normal, rms_normalize, weight
from ratjax.model.remat import PROJECTIONS
from ratjax.shapes import HeadState, Keys, PRNGKeyArray, Residual, Values
from ratjax.sharding import sharded_decay_scan
from ratjax_kernels import decay_step


def initial_bias(config: MemoryConfig, shape: tuple[int, ...], key: PRNGKeyArray) -> Array:
    """The gate's bias at the start of training, float32; see `MemoryConfig.init`.

    `log_uniform` draws effective lengths n = 1 / (1 - g) log-uniformly from
    2..`init_max_length` and returns logit(g) = log(n - 1) (RAT, arXiv 2507.04416).
    """
    match config.init:
        case "near_identity":
            return jnp.full(shape, config.init_bias, jnp.float32)
        case "identity":
            return jnp.full(shape, -jnp.inf, jnp.float32)
        case "normal":
            return jnp.zeros(shape, jnp.float32)
        case "log_uniform":
            log_length = jax.random.uniform(
                key, shape, jnp.float32, math.log(2), math.log(config.init_max_length)
            )
            return jnp.log(jnp.expm1(log_length))
    raise AssertionError(config.init)


class DecayMemory(nnx.Module):
    """`h_t = g_t h_{t-1} + (1 - g_t) x_t` over keys and values, one gate for both (Eq. 1).

    g_t = sigmoid(W x_t + b), one value per channel of every key/value head. The state starts
    at zero, so the first key is scaled by 1 - g (no bias correction), as in released RAT+.
    """

    def __init__(self, config: ModelConfig, memory: MemoryConfig, key: PRNGKeyArray):
        self.config = memory
        self.norm_eps = config.norm_eps
        heads = (config.num_kv_heads, config.head_dim)
        matrix_key, bias_key = jax.random.split(key)
        shape = (config.hidden_size, *heads)
        if memory.init in ("normal", "log_uniform"):
            self.weight = normal(matrix_key, shape, config.init_std)
        else:
            self.weight = nnx.Param(jnp.zeros(shape, jnp.float32))
        self.bias = nnx.Param(initial_bias(memory, heads, bias_key)) if memory.gate_bias else None

    def gate_logits(self, x: Residual) -> Float[Array, "B T G D"]:
        """The gate before its sigmoid, in x's dtype; `x` is the tensor that feeds q, k and v."""
        dtype = x.dtype
        if self.config.gate_input == "normalized":
            x = rms_normalize(x, self.norm_eps).astype(dtype)
        logits = jnp.einsum("btm,mgd->btgd", x, weight(self.weight, dtype))
        return logits if self.bias is None else logits + self.bias.astype(dtype)

    def __call__(
        self,
        x: Residual,
        k: Keys,
        v: Values,
        valid: Bool[Array, "B T"] | None = None,
        document_starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[tuple[Keys, Values], tuple[HeadState, HeadState]]:
        """The memory over whole sequences.

        Args:
          x: what feeds the projections, [B, T, M].
          k: keys before RoPE, [B, T, G, D].
          v: values, likewise.
          valid: False at padding behind a prompt. There the state is carried unchanged
            (g = 1), whatever k and v hold.
          document_starts: True where a packed document begins; the memory forgets there, as
            if the sequence began. None carries it over, as published.

        Returns:
          The memory's keys and values in the dtypes of k and v, and the last state in
          float32: for each sequence, the one after its last valid position.
        """
        logits = checkpoint_name(self.gate_logits(x), PROJECTIONS)
        if document_starts is not None:
            # A fresh start is h = (1 - g) x. The scan's own gate must be 0 there to drop the
            # old state, so the factor moves into the input.
            start = document_starts[..., None, None]
            keep = jax.nn.sigmoid(-logits.astype(jnp.float32))
            k = jnp.where(start, (keep * k).astype(k.dtype), k)
            v = jnp.where(start, (keep * v).astype(v.dtype), v)
            logits = jnp.where(start, -jnp.inf, logits)
        if valid is not None:
            inside = valid[..., None, None]
            k, v = jnp.where(inside, k, 0), jnp.where(inside, v, 0)
            logits = jnp.where(inside, logits, jnp.inf)
        return sharded_decay_scan(logits, k, v)

    def step(
        self, x: Residual, k: Keys, v: Values, state: tuple[HeadState, HeadState]
    ) -> tuple[tuple[Keys, Values], tuple[HeadState, HeadState]]:
        """One decode step, T = 1. The state stays in float32, as prefill computes it.

        (The released PyTorch code rounds it to bfloat16 at every step.)
        """
        (k_mem, v_mem), state = decay_step(self.gate_logits(x)[:, 0], k[:, 0], v[:, 0], state)
        return (k_mem[:, None], v_mem[:, None]), state

    def effective_length(self, x: Residual) -> Float32[Array, "B T G D"]:
        """1 / (1 - g) in tokens: how far back the memory averages (2 at g = 0.5)."""
        return 1 + jnp.exp(self.gate_logits(x).astype(jnp.float32))
