"""Checkpoints and whole runs on eight devices, gone on with on fewer."""

import dataclasses

import jax
import numpy as np
import pytest

from ratjax.config.data import DataConfig, DataStage
from ratjax.data import write_rows
from ratjax.model.checkpoint import load_model
from ratjax.model.parameters import to_parameters
from ratjax.train import train
from ratjax.train.checkpoint import Checkpoints, restore
from ratjax.train.state import abstract_state, fresh_state
from tests.sharding.devices.cases import BATCH, LENGTH, MEMORY, TRAIN, VOCAB, largest_gap, mesh_of
from tests.train.conftest import read_metrics

pytestmark = pytest.mark.slow

SIGNATURE = {"model": dataclasses.asdict(MEMORY), "train": {}, "data": []}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint written from eight devices, and what is in it."""
    folder = tmp_path_factory.mktemp("saved")
    state = fresh_state(MEMORY, TRAIN, mesh_of((2, 2, 2, 1)))
    checkpoints = Checkpoints(folder, TRAIN)
    checkpoints.save(state._replace(step=np.int32(7)), {"next_index": 7}, SIGNATURE)
    checkpoints.close()
    return folder, jax.device_get(state)


@pytest.mark.parametrize(
    "sizes", [(1, 8, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2), None], ids=["8", "4", "2", "1"]
)
def test_a_checkpoint_goes_wherever_the_next_run_wants_it(saved, sizes):
    folder, original = saved
    mesh = None if sizes is None else mesh_of(sizes)
    abstract = abstract_state(MEMORY, TRAIN, mesh)
    state, position = restore(folder, abstract, SIGNATURE)
    assert (int(state.step), position) == (7, {"next_index": 7})
    assert jax.tree.all(jax.tree.map(lambda a, w: a.sharding == w.sharding, state, abstract))
    assert largest_gap(state.parameters, original.parameters) == 0
    assert largest_gap(state.optimizer, original.optimizer) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (40, LENGTH), dtype=np.int32)
    write_rows(folder / "rows", tokens, rng.random((40, LENGTH)) < 0.7)
    return DataConfig((DataStage(4, LENGTH, BATCH, ((str(folder / "rows"), 1.0),), "two_step"),))


def losses(workdir):
    names = ("loss", "loss_sparse", "loss_held_out", "skipped")
    return [[line[name] for name in names] for line in read_metrics(workdir)]


def test_a_run_moves_from_eight_devices_to_four_two_and_one(data, tmp_path):
    """With guarded steps and held-out losses, which are programs of the mesh too."""
    flat = {"memory_learning_rate": 1e-2, "end_learning_rate": 1e-2}  # whatever the steps
    more = {"on_bad_step": "skip", "spike": 6.0, "held_out": data.stages[0].sources}
    more |= {"held_out_batches": 2, "microbatches": 2}

    def run(workdir, steps, sizes):
        settings = dataclasses.replace(TRAIN, steps=steps, **flat, **more)
        mesh = None if sizes is None else mesh_of(sizes)
        assert train(MEMORY, settings, data, workdir, mesh=mesh)

    run(tmp_path / "one", 4, None)
    for steps, sizes in enumerate(((2, 2, 2, 1), (1, 2, 1, 2), (2, 1, 1, 1), None), start=1):
        run(tmp_path / "moved", steps, sizes)
    # Four batches of two optimizer steps, from float32 sums in another order.
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "one"), rtol=1e-5)
    ours, theirs = (to_parameters(load_model(tmp_path / run)) for run in ("moved", "one"))
    assert largest_gap(ours, theirs) < 1e-5

    # and a model folder is read onto a mesh
    spread = to_parameters(load_model(tmp_path / "one", mesh=mesh_of((1, 4, 2, 1))))
    assert largest_gap(spread, theirs) == 0
    assert not spread["blocks/mlp/w_up"].is_fully_replicated
