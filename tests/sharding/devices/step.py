"""The training step on meshes against one device, and where things lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from ratjax.train.state import abstract_batch, abstract_state, fresh_state, place_batch
from ratjax.train.step import make_train_step
from tests.sharding.devices.cases import (
    BATCH,
    LENGTH,
    MEMORY,
    MESHES,
    MODELS,
    TRAIN,
    batch,
    largest_gap,
    mesh_of,
)

pytestmark = pytest.mark.slow

WHOLE = dataclasses.replace(TRAIN, loss_chunk=LENGTH)  # less to compile


def one_step(config, train, mesh, recurrence):
    state = fresh_state(config, train, mesh)
    inputs = batch() if mesh is None else place_batch(batch(), mesh)
    after, metrics = make_train_step(config, train, 10, mesh)(state, inputs, recurrence, None)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.parameters))  # donated
    places = jax.tree.map(lambda a: a.sharding, abstract_state(config, train, mesh))
    assert jax.tree.all(jax.tree.map(lambda a, place: a.sharding == place, after, places))
    return jax.device_get((after, metrics))


@functools.cache
def on_one_device(model, recurrence):
    return one_step(MODELS[model], WHOLE, None, recurrence)


def check_step(model, recurrence, sizes, microbatches):
    train = dataclasses.replace(WHOLE, microbatches=microbatches)
    found = one_step(MODELS[model], train, mesh_of(sizes), recurrence)
    expected = on_one_device(model, recurrence)
    # as above, through AdamW with its epsilon, at rates of up to 3e-2
    assert largest_gap(found, expected) < 1e-5, (model, recurrence, sizes)


def test_two_steps_of_active_recurrence_in_microbatches():
    check_step("memory", "two_step", (2, 1, 2, 2), microbatches=2)


@pytest.mark.parametrize(
    ("model", "sizes"),
    # Eight sequences leave no two for eight devices. One mesh for attention: the memory's step
    # holds all of attention's, and tests/sharding/devices/gradients.py has other meshes.
    [("attention", (2, 1, 2, 2)), *(("memory", sizes) for sizes in MESHES[1:])],
)
def test_all_steps(model, sizes):
    check_step(model, "two_step", sizes, microbatches=BATCH // (sizes[0] * sizes[1]))


def test_a_state_begins_as_on_one_device():
    """Made in parts, to the last bit."""
    mesh = mesh_of((2, 2, 2, 1))
    parts, whole = (fresh_state(MEMORY, TRAIN, m) for m in (mesh, None))
    assert largest_gap(parts, whole) == 0
    for array, wanted in zip(
        jax.tree.leaves(parts), jax.tree.leaves(abstract_state(MEMORY, TRAIN, mesh)), strict=True
    ):
        assert (array.shape, array.dtype, array.sharding) == (
            wanted.shape,
            wanted.dtype,
            wanted.sharding,
        )
    cut = parts.parameters["blocks/attention/w_q"]
    assert cut.addressable_shards[0].data.shape == (2, 8, 2, 4)
    assert parts.optimizer[1].mu["blocks/attention/w_q"].sharding == cut.sharding


def check_no_stack(remat):
    config = dataclasses.replace(MEMORY, remat=remat)
    mesh = mesh_of((1, 8, 1, 1))
    state, inputs = abstract_state(config, WHOLE, mesh), abstract_batch(BATCH, LENGTH, mesh)
    step = make_train_step(config, WHOLE, 10, mesh)
    text = step.lower(state, inputs, "off", None).compile().as_text()
    # feed-forward matrices: both layers' parts, one layer gathered, both layers gathered
    assert "[2,2,24]" in text
    assert "[16,24]" in text or "[1,16,24]" in text
    assert "[2,16,24]" not in text


def test_no_layer_keeps_what_was_gathered_for_it():
    check_no_stack("none")


@pytest.mark.parametrize("remat", ["save_attention", "full"])
def test_recomputing_layers_keep_nothing_gathered_either(remat):
    check_no_stack(remat)


def test_a_program_for_a_described_batch_is_the_one_that_runs():
    mesh = mesh_of((2, 4, 1, 1))
    placed = place_batch(jax.device_get(batch()), mesh)
    for array, wanted in zip(placed, abstract_batch(BATCH, LENGTH, mesh), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (
            wanted.shape,
            wanted.dtype,
            wanted.sharding,
        )
        assert array.addressable_shards[0].data.shape == (1, LENGTH)
    assert jnp.array_equal(placed.tokens, batch().tokens)
