"""Prefill and decode on meshes against one device: logits, caches, entries read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ratjax.model.parameters import to_model
from ratjax.model.placement import placed_parameters
from ratjax.sharding import on_mesh
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.sparsity.moba import MoBA
from ratjax.sparsity.quest import Quest
from ratjax.sparsity.snapkv import SnapKV
from tests.sharding.devices.cases import MEMORY, OTHER, largest_gap, mesh_of
from tests.train.conftest import random_parameters

pytestmark = pytest.mark.slow

PATTERNS = {
    "dense": Dense(),
    "dilated": Dilated(4, 3, 2),
    "quest": Quest(page_size=4, pages=3),
    "moba": MoBA(block_size=4, blocks=2),
    "snapkv": SnapKV(window=2, capacity=8),
    # one pattern a layer: two runs of layers, two caches
    "mixed": (Dense(), Quest(page_size=4, pages=3)),
}
STEPS = 3


def serve(config, pattern, mesh):
    """Logits of a prompt's end and of the tokens after it, the caches, the entries read."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (4, 16), dtype=np.int32)
    lengths = np.asarray([16, 9, 13, 11], np.int32)
    more = rng.integers(0, config.vocab_size, (STEPS, 4, 1), dtype=np.int32)
    parameters = random_parameters(config)
    if mesh is not None:
        places = {name: a.sharding for name, a in placed_parameters(config, mesh).items()}
        parameters = jax.device_put(parameters, places)

    def run(parameters, tokens, lengths, more):
        model = to_model(config, parameters)
        first, state, read = model.prefill(tokens, lengths, pattern, STEPS)

        def step(state, tokens):
            logits, state, read = model.decode(tokens, state, pattern)
            return state, (logits, read)

        state, rest = jax.lax.scan(step, state, more)
        return (first, read), rest, state

    found = on_mesh(mesh, jax.jit(run))(parameters, *map(jnp.asarray, (tokens, lengths, more)))
    if mesh is not None:
        keys = found[2].caches[0].k
        groups = keys.sharding.shard_shape(keys.shape)
        assert groups[1] == 4 // (mesh.shape["data"] * mesh.shape["fsdp"])
        assert groups[3] == 2 // mesh.shape["tensor"]
    return jax.device_get(jax.tree.leaves(found))


@functools.cache
def on_one_device(model, pattern):
    return serve(MODELS[model], PATTERNS[pattern], None)


MODELS = {"memory": MEMORY, "other": dataclasses.replace(OTHER, memory=None)}


CASES = [
    *(("memory", pattern, (2, 2, 2, 1)) for pattern in PATTERNS),
    *(("other", pattern, (1, 4, 2, 1)) for pattern in PATTERNS),
    *(("memory", pattern, (4, 1, 1, 1)) for pattern in ("dense", "mixed")),
    *(("other", pattern, (1, 1, 2, 1)) for pattern in ("quest", "snapkv")),
]


@pytest.mark.parametrize(("model", "pattern", "sizes"), CASES)
def test_serving(model, pattern, sizes):
    found = serve(MODELS[model], PATTERNS[pattern], mesh_of(sizes))
    # float32 sums in another order
    assert largest_gap(found, on_one_device(model, pattern)) < 1e-5
