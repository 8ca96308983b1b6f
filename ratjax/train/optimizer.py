"""AdamW with one learning rate for the memory and another for everything else.

The learning rate is a function of the batch, not of the optimizer's own count: active
recurrence learning takes two optimizer steps a batch, and both use the batch's rate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from ratjax.config.train import TrainConfig
from ratjax.model.parameters import Parameters, is_memory


class Rates(NamedTuple):
    """The learning rates of one batch."""

    learning_rate: Float32[Array, ""]
    memory_learning_rate: Float32[Array, ""]


def cosine(
    step: Int32[Array, ""], total: int, warmup: int, peak: float, end: float
) -> Float32[Array, ""]:
    """Linear warmup, then half a cosine, as in the released RAT+ recipes.

    (step + 1) / warmup * peak while step < warmup, and from there
    end + (peak - end) (1 + cos(pi (step - warmup) / (total - warmup))) / 2.
    """
    step = step.astype(jnp.float32)
    rising = (step + 1) / max(warmup, 1) * peak
    falling = end + (peak - end) * 0.5 * (
        1 + jnp.cos(jnp.pi * (step - warmup) / max(total - warmup, 1))
    )
    return jnp.where(step < warmup, rising, falling)


def rates(train: TrainConfig, total: int, step: Int32[Array, ""]) -> Rates:
    """The learning rates of batch `step` (from 0) of `total`."""
    warmup = int(train.warmup * total)
    end = train.end_learning_rate
    return Rates(
        cosine(step, total, warmup, train.learning_rate, end),
        cosine(step, total, warmup, train.peak_memory_learning_rate, end),
    )


def optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Clipping, AdamW's direction, and weight decay on every parameter, before learning rates."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.scale_by_adam(train.beta1, train.beta2, train.epsilon),
        optax.add_decayed_weights(train.weight_decay),
    )


def descend(parameters: Parameters, direction: Parameters, rates: Rates) -> Parameters:
    """Moves each parameter against its direction, at its group's learning rate."""

    def rate(name: str) -> Float32[Array, ""]:
        return rates.memory_learning_rate if is_memory(name) else rates.learning_rate

    return {name: p - rate(name) * direction[name] for name, p in parameters.items()}


def initial(
    train: TrainConfig, parameters: Parameters, places: optax.OptState | None = None
) -> optax.OptState:
    """The optimizer's state before the first step; `places` are its shardings (None: default)."""
    return jax.jit(optimizer(train).init, out_shardings=places)(parameters)
