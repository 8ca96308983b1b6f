import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.model.parameters import abstract_parameters
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated, visible
from ratjax.sparsity.moba import MoBA
from ratjax.train.flops import (
    forward_flops,
    matmul_weights,
    mean_visible_keys,
    peak_flops,
    peak_of,
    step_flops,
)

CONFIG = ModelConfig(100, 24, 3, 4, 2, 8, 40)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"memory": MemoryConfig()},
        {"mlp": "gelu", "output_gate": True},
    ],
)
def test_matmul_weights_are_the_layers_matrices(change):
    config = dataclasses.replace(CONFIG, **change)
    matrices = {
        name: array.size
        for name, array in abstract_parameters(config).items()
        if name.startswith("blocks/") and "norm" not in name and "bias" not in name
    }
    assert matmul_weights(config) == sum(matrices.values())


@pytest.mark.parametrize(
    ("pattern", "exact"),
    [(Dense(), True), (Dilated(4), False), (Dilated(4, 3, 2), False), (Dilated(-1, 5), True)],
)
def test_visible_keys_against_the_mask(pattern, exact):
    length = 64
    i, j = jnp.arange(length)[:, None], jnp.arange(length)[None]
    if isinstance(pattern, Dense):
        mask = j <= i
    else:
        mask = np.asarray(visible(i, j, pattern.dilation, pattern.local, pattern.initial))
    true = mask.sum(1).mean()
    counted = mean_visible_keys(pattern, length)
    if exact:
        assert counted == true
    else:  # keys that two rules show are counted twice: at most local/dilation + a few
        assert true <= counted <= true + 2


def test_by_hand():
    """One layer, one head: 2 * weights + 4 * D * (T + 1) / 2, 6 D for the memory, the head."""
    config = ModelConfig(10, 4, 1, 1, 1, 4, 8, memory=MemoryConfig())
    weights = 5 * 16 + 3 * 4 * 8
    forward = 8 * (2 * weights + 4 * 4 * 4.5 + 6 * 4)
    assert forward_flops(config, Dense(), 8, 8) == forward + 8 * 2 * 40
    assert step_flops(config, [Dense(), Dense()], 8, 2) == 2 * 3 * 2 * (forward + 8 * 2 * 40)
    # logits at three of the eight positions
    assert step_flops(config, [Dense()], 8, 2, 3) == 3 * 2 * (forward + 3 * 2 * 40)


def test_peak_is_unknown_on_a_cpu_and_known_on_the_usual_accelerators():
    assert peak_flops(jax.devices("cpu")[0]) is None
    known = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
    }
    for kind, peak in known.items():
        assert peak_of(kind) == peak


def test_visible_keys_under_moba():
    """Blocks of 4, two of them kept: position 9 sees its own block up to itself and one before."""
    assert mean_visible_keys(MoBA(4, 2), 10) == np.mean([1, 2, 3, 4, 5, 6, 7, 8, 5, 6])
    assert mean_visible_keys(MoBA(4, 9), 10) == mean_visible_keys(Dense(), 10)
