"""One decoder block in the two published orders: OLMo2's post-norm and RAT+'s pre-norm."""

from collections.abc import Callable

import jax
from flax import nnx

from ratjax.config.model import ModelConfig
from ratjax.model.attention import Attention
from ratjax.model.layers import MLP, RMSNorm
from ratjax.shapes import PRNGKeyArray, Residual


class Block(nnx.Module):
    """post: x + norm(f(x)); pre: x + f(norm(x)); f is attention, then the feed-forward layer."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        attention_key, mlp_key = jax.random.split(key)
        self.norm_first = config.norm == "pre"
        self.attention = Attention(config, attention_key)
        self.attention_norm = RMSNorm((config.hidden_size,), config.norm_eps)
        self.mlp = MLP(config, mlp_key)
        self.mlp_norm = RMSNorm((config.hidden_size,), config.norm_eps)

    def __call__(self, x: Residual, attend: Callable) -> tuple:
        """The block around one form of its attention: training, prefill or a decode step.

        Args:
          x: the residual stream, [B, T, M].
          attend: maps attention's input to (its output, *anything else), both [B, T, M].

        Returns:
          (the residual stream after the block, *anything else).
        """
        mixed, *rest = attend(self.attention_norm(x) if self.norm_first else x)
        x = x + (mixed if self.norm_first else self.attention_norm(mixed))
        if self.norm_first:
            x = x + self.mlp(self.mlp_norm(x))
        else:
            x = x + self.mlp_norm(self.mlp(x))
        return x, *rest
