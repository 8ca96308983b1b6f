"""Parameters for inference: held as they are used, and told apart by their bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.model.checkpoint import load_model, save_model
from ratjax.model.parameters import checksum, in_compute_dtype, inference_dtypes, to_parameters
from tests.decoders import initial

HALF = with_memory(dataclasses.replace(preset("tiny"), dtype="bfloat16"), MemoryConfig())


@pytest.mark.parametrize("added", [False, True])
def test_half_the_weights_and_the_same_logits(added):
    config = dataclasses.replace(HALF, previous_token_embedding=added, tie_embeddings=added)
    model = initial(config)
    held = in_compute_dtype(model)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    np.testing.assert_array_equal(held(tokens), model(tokens))
    dtypes = {name: leaf.dtype for name, leaf in to_parameters(held).items()}
    assert dtypes == inference_dtypes(config)
    assert dtypes["blocks/mlp/w_up"] == jnp.bfloat16
    assert dtypes["blocks/attention/k_norm/weight"] == jnp.float32
    assert dtypes["embedding"] == (jnp.float32 if added else jnp.bfloat16)


def test_checkpoints_are_read_in_the_compute_dtype(tmp_path):
    model = initial(dataclasses.replace(HALF, dtype="float32"))
    save_model(tmp_path / "model", model, None, {})
    read = load_model(tmp_path / "model", "bfloat16", inference=True)
    expected = in_compute_dtype(initial(HALF))
    for name, leaf in to_parameters(read).items():
        np.testing.assert_array_equal(leaf, to_parameters(expected)[name], err_msg=name)
        assert leaf.dtype == inference_dtypes(HALF)[name]


def test_a_checksum_tells_models_apart():
    model = initial(HALF)
    assert checksum(model) == checksum(initial(HALF))
    assert checksum(model) != checksum(initial(HALF, 1))
    changed = to_parameters(model)["blocks/mlp/w_up"].at[0, 0, 0].add(1e-6)
    other = jax.tree.map(lambda a: changed if a.shape == changed.shape else a, model)
    assert checksum(other) != checksum(model)
