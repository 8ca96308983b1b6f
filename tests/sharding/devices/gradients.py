"""Losses and gradients on meshes against those of one device."""

import functools

import jax
import numpy as np
import pytest

from ratjax.model.parameters import to_model
from ratjax.model.placement import placed_parameters
from ratjax.sharding import on_mesh
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.train.loss import loss_sums
from ratjax.train.state import place_batch
from tests.sharding.devices.cases import MESHES, MODELS, TRAIN, batch, largest_gap, mesh_of
from tests.train.conftest import random_parameters

PATTERNS = {"dense": Dense(), "dilated": Dilated(4, 3, 2)}


def differentiate(config, pattern, mesh):
    """Losses and gradients, per target, of random parameters."""
    parameters, inputs = random_parameters(config), batch()
    if mesh is not None:
        places = {name: a.sharding for name, a in placed_parameters(config, mesh).items()}
        parameters, inputs = jax.device_put(parameters, places), place_batch(inputs, mesh)

    def losses(parameters, batch):
        targets = batch.mask.sum()
        model = to_model(config, parameters)
        sums = loss_sums(model, batch, pattern, TRAIN.z_loss, TRAIN.loss_chunk)
        return sums[0] / targets, sums[1] / targets

    gradient = on_mesh(mesh, jax.jit(jax.value_and_grad(losses, has_aux=True)))
    found = gradient(parameters, inputs)
    if mesh is not None:
        for name, array in found[1].items():
            assert array.sharding == places[name], name
    return jax.device_get(found)


@functools.cache
def on_one_device(model, pattern):
    return differentiate(MODELS[model], PATTERNS[pattern], None)


def check_gradients(model, pattern, sizes):
    found = differentiate(MODELS[model], PATTERNS[pattern], mesh_of(sizes))
    expected = on_one_device(model, pattern)
    assert max(np.abs(g).max() for g in expected[1].values()) > 1e-2
    # float32 sums in another order
    assert largest_gap(found, expected) < 1e-5, (model, pattern, sizes)


def test_gradients():
    """On a mesh that cuts parameters, heads, sequences and time at once."""
    check_gradients("memory", "dense", (1, 2, 2, 2))


EVERY = [
    (model, pattern, sizes)
    for model in MODELS
    for pattern in PATTERNS
    # All meshes for one model; for the others those that cut most ways.
    for sizes in (MESHES if (model, pattern) == ("memory", "dense") else MESHES[4:6])
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "pattern", "sizes"), EVERY)
def test_all_gradients(model, pattern, sizes):
    check_gradients(model, pattern, sizes)
