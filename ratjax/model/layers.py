"""The small pieces every block is made of: RMSNorm, RoPE, the two feed-forward layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from ratjax.config.model import ModelConfig
from ratjax.shapes import PRNGKeyArray, Residual
from ratjax.sharding import gather, out_sharding


def normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 parameter drawn from N(0, std^2); released RAT+ and OLMo2 use std = 0.02."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32))


def weight(parameter: nnx.Param, dtype: DTypeLike) -> Float[Array, "..."]:
    """A parameter ready for use: in the compute dtype, and whole where a mesh cuts it up."""
    return gather(parameter.astype(dtype))


def rms_normalize(x: Float[Array, "..."], eps: float, axes: int = 1) -> Float32[Array, "..."]:
    """`x` over its root mean square along the last `axes` axes, in float32, without weights."""
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(x * x, axis=tuple(range(-axes, 0)), keepdims=True)
    return x * jax.lax.rsqrt(mean_square + eps)


class RMSNorm(nnx.Module):
    """RMSNorm over the trailing axes that `shape` names; weight applied in float32, then cast.

    OLMo2's q- and k-norm span all heads at once: there `shape` is (heads, head_dim).
    """

    def __init__(self, shape: tuple[int, ...], eps: float):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(shape, jnp.float32))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        weight = self.weight[...]
        return (rms_normalize(x, self.eps, weight.ndim) * weight).astype(x.dtype)


def rope(
    x: Float[Array, "B T heads D"], positions: Int32[Array, "#B T"], theta: float
) -> Float[Array, "B T heads D"]:
    """Rotary position embedding, half-split ("rotate_half") convention, angles in float32.

    Channel c < D/2 pairs with channel c + D/2 and turns by `position * theta^(-2c/D)`, as in
    OLMo2 and in released RAT+ (which differ in `theta`).
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class MLP(nnx.Module):
    """The feed-forward layer: SwiGLU (OLMo2) or two matrices with exact GELU (RAT+). No biases."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        up, gate, down = jax.random.split(key, 3)
        wide = (config.hidden_size, config.intermediate_size)
        self.w_up = normal(up, wide, config.init_std)
        self.w_gate = normal(gate, wide, config.init_std) if config.mlp == "swiglu" else None
        self.w_down = normal(down, wide[::-1], config.init_std)

    def __call__(self, x: Residual) -> Residual:
        up = x @ weight(self.w_up, x.dtype)
        if self.w_gate is None:
            wide = jax.nn.gelu(up, approximate=False)
        else:
            wide = jax.nn.silu(x @ weight(self.w_gate, x.dtype)) * up
        whole = out_sharding("batch", "time", "channels")
        return jnp.matmul(wide, weight(self.w_down, x.dtype), out_sharding=whole)
