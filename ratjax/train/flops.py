"""How many floating-point operations a training step needs, and what share of the peak that is.

The model's operations are counted, not the machine's: causal attention reads half the square,
recomputation (rematerialisation) is left out, the backward pass counts twice the forward pass,
and embedding look-ups and element-wise work other than the memory's recurrence count nothing.
"""

import jax
import numpy as np

from ratjax.config.model import ModelConfig
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.pattern import Pattern

FORMULA = """\
MFU = FLOPs per step / seconds per step / (devices x peak dense bfloat16 FLOP/s of a device).

FLOPs per step = tokens x sum over passes of 3 (forward 1, backward 2) x forward FLOPs per token;
forward FLOPs per token = 2 x (weights of the projections, feed-forward layers and gate)
  + 2 x (weights of the head) x (share of the positions whose logits are computed: 1, unless
    few of them have targets)
  + layers x 4 x query heads x head_dim x mean visible keys
  + layers x 6 x key/value heads x head_dim, with the memory (three operations for k, three for v).
Mean visible keys: (T + 1) / 2 for a dense causal pass; for a dilated one the keys that its rule
shows. Recomputation is not counted."""

PEAKS = {  # dense bfloat16 FLOP/s of one device, from the makers' data sheets
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The device's peak; None where it is not known (a CPU, say)."""
    return peak_of(device.device_kind)


def peak_of(kind: str) -> float | None:
    """The peak of a kind of device, as JAX names it."""
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def matmul_weights(config: ModelConfig) -> int:
    """Weights of the layers, which every token is multiplied with once; not the head's."""
    query = config.hidden_size * config.num_heads * config.head_dim
    key = config.hidden_size * config.num_kv_heads * config.head_dim
    attention = 2 * query + 2 * key + (query if config.output_gate else 0)
    gate = key if config.memory is not None else 0
    matrices = {"swiglu": 3, "gelu": 2}[config.mlp]
    mlp = matrices * config.hidden_size * config.intermediate_size
    return config.num_layers * (attention + gate + mlp)


def mean_visible_keys(pattern: Pattern, length: int) -> float:
    """Keys that a query sees, averaged over the `length` queries of a sequence."""
    position = np.arange(length)
    match pattern:
        case MoBA(block_size=size, blocks=blocks):
            # Its own block up to itself, and as many whole ones before as there are and it keeps.
            seen = position % size + 1 + np.minimum(position // size, blocks - 1) * size
        case Dense():
            seen = position + 1
        case Dilated(dilation, local, initial):
            strided = (position + 1) // dilation if dilation > 0 else 0
            # Keys that two of the rules show are counted twice, up to all there are.
            seen = strided + np.minimum(position, local) + 1 + np.minimum(position, initial)
            seen = np.minimum(seen, position + 1)
        case _:
            raise TypeError(f"no count for whole sequences under {pattern}")
    return float(seen.mean())


def attention_flops(config: ModelConfig, pattern: Pattern, length: int) -> float:
    """The part of one sequence's forward pass that multiplies queries, keys and values."""
    heads = config.num_heads * config.head_dim
    return config.num_layers * length * 4 * heads * mean_visible_keys(pattern, length)


def forward_flops(
    config: ModelConfig, pattern: Pattern, length: int, logit_positions: int
) -> float:
    """One sequence's forward pass; logits are computed at `logit_positions` of its tokens."""
    recurrence = 6 * config.num_kv_heads * config.head_dim if config.memory is not None else 0
    per_token = 2 * matmul_weights(config) + config.num_layers * recurrence
    head = 2 * config.hidden_size * config.vocab_size
    attention = attention_flops(config, pattern, length)
    return length * per_token + attention + logit_positions * head


def step_flops(
    config: ModelConfig,
    patterns: list[Pattern],
    length: int,
    batch_size: int,
    logit_positions: int | None = None,
) -> float:
    """Operations of one training step that runs all of `patterns` over a batch."""
    positions = length if logit_positions is None else logit_positions
    return 3 * batch_size * sum(forward_flops(config, p, length, positions) for p in patterns)
