"""A pair of tiny models and their data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.data import DataConfig, DataStage
from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.train import TrainConfig
from ratjax.data import Batch, write_rows
from ratjax.model.parameters import abstract_parameters

VOCAB = 32


@pytest.fixture(scope="session")
def attention_config():
    return ModelConfig(VOCAB, 16, 1, 2, 1, 8, 16)


@pytest.fixture(scope="session")
def memory_config(attention_config):
    return dataclasses.replace(attention_config, memory=MemoryConfig(init="normal"))


@pytest.fixture(scope="session")
def train_config():
    return TrainConfig(
        learning_rate=1e-2,
        memory_learning_rate=3e-2,
        recurrence_dilation=4,
        log_every=1,
        checkpoint_every=2,
        keep=10,
        seed=3,
    )


@pytest.fixture(scope="session")
def data_config(tmp_path_factory):
    """Two stages of three steps: active recurrence learning on short rows, then longer ones."""
    root = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    for length in (8, 12):
        tokens = rng.integers(0, VOCAB, (40, length), dtype=np.int32)
        write_rows(root / str(length), tokens, rng.random((40, length)) < 0.7)
    return DataConfig(
        (
            DataStage(3, 8, 4, ((str(root / "8"), 1.0),), "two_step"),
            DataStage(3, 12, 4, ((str(root / "12"), 1.0),)),
        )
    )


@pytest.fixture
def batch():
    """Four sequences of 8 with 0, 1, 3 and 8 targets: means of means would be wrong."""
    rng = np.random.default_rng(1)
    mask = np.arange(8) < np.asarray([[0], [1], [3], [8]])
    tokens, targets = rng.integers(0, VOCAB, (2, 4, 8), dtype=np.int32)
    return jax.tree.map(jnp.asarray, Batch(tokens, targets, mask, np.zeros((4, 8), bool)))


def random_parameters(config, seed=0):
    """Parameters of a model without compiling its initializers."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(0.3 * rng.normal(size=array.shape) + ("norm" in name), jnp.float32)
        for name, array in abstract_parameters(config).items()
    }


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
