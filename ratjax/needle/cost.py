"""What a setting costs by counting: operations of prefill, bytes read a token, bytes kept.

Counted from the model's shape and the entries that were read, so they hold on every device; times
are measured and stand elsewhere. A *position* is one token's key and value in all layers and
key/value heads.
"""

import jax.numpy as jnp

from ratjax.config.model import ModelConfig
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.pattern import Pattern
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from ratjax.sparsity.swapped import Swapped
from ratjax.train.flops import matmul_weights

Number = int | float


def position_bytes(config: ModelConfig) -> int:
    """Bytes of one position in the cache."""
    channels = config.num_layers * config.num_kv_heads * config.head_dim
    return 2 * channels * jnp.dtype(config.dtype).itemsize


def cache_bytes(config: ModelConfig, pattern: Pattern, length: Number) -> Number:
    """Bytes kept of a prompt of `length` tokens: keys, values, page bounds, the memory's state.

    Twice the keys and values where a pattern decodes with raw ones and states both.
    """
    sets = 1
    if isinstance(pattern, Swapped):
        pattern, sets = pattern.pattern, pattern.sets
    match pattern:
        case SnapKV():
            kept = min(length, pattern.capacity)
        case Dilated():
            strided = length // pattern.dilation if pattern.dilation > 0 else 0
            kept = min(length, strided + pattern.initial + pattern.local + 1)
        case _:
            kept = length
    positions = sets * kept + _bounds(pattern, length)
    return positions * position_bytes(config) + _state_bytes(config)


def decode_bytes(config: ModelConfig, pattern: Pattern, length: Number, read: Number) -> Number:
    """Bytes of the cache that one decode step reads of one sequence, the memory's state included.

    Args:
      config: the model.
      pattern: what decodes.
      length: tokens in context.
      read: entries read, averaged over the query heads. Where each query head chooses for itself
        (Quest), the heads of a group read their own entries; else they share them.
    """
    pattern = pattern.pattern if isinstance(pattern, Swapped) else pattern
    apart = isinstance(pattern, Quest) and pattern.per == "query_head"
    times = config.queries_per_kv_head if apart else 1
    scored = _bounds(pattern, length) if getattr(pattern, "selector", "") != "random" else 0
    return (times * read + scored) * position_bytes(config) + _state_bytes(config)


def _state_bytes(config: ModelConfig) -> int:
    """Bytes of the memory's state: a key and a value of each layer and head, in float32."""
    return 8 * config.num_layers * config.num_kv_heads * config.head_dim if config.memory else 0


def _bounds(pattern: Pattern, length: Number) -> Number:
    """Quest's page bounds in positions: a page has two, the size of a key and a value."""
    return -(-length // pattern.page_size) if isinstance(pattern, Quest) else 0


def prefill_flops(config: ModelConfig, pattern: Pattern, length: Number, pairs: Number) -> Number:
    """Operations of one prompt's prefill, with the logits of its last token alone.

    Args:
      config: the model.
      pattern: what prefills. MoBA's scores of the blocks count; SnapKV's of its window too.
      length: tokens of the prompt.
      pairs: query-key pairs attended to, averaged over query heads and layers.
    """
    pattern = pattern.pattern if isinstance(pattern, Swapped) else pattern
    width = config.num_heads * config.head_dim
    recurrence = 6 * config.num_kv_heads * config.head_dim if config.memory is not None else 0
    scored = 0.0  # query-candidate products: one of the two products that a pair takes
    if isinstance(pattern, MoBA) and pattern.selector == "original":
        scored = length * (length / pattern.block_size) / 2
    elif isinstance(pattern, SnapKV):
        scored = pattern.window_queries * length
    attention = config.num_layers * width * (4 * pairs + 2 * scored)
    linear = length * (2 * matmul_weights(config) + config.num_layers * recurrence)
    return linear + attention + 2 * config.hidden_size * config.vocab_size


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of the weights that one decode step reads, whatever the batch."""
    head = config.hidden_size * config.vocab_size
    return (matmul_weights(config) + head) * jnp.dtype(config.dtype).itemsize
