"""A run with everything switched on: held-out losses, skipped steps, kept checkpoints, a trace."""

import dataclasses
import os
import shutil
import threading

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ratjax.config.data import DataConfig, DataStage, schedule
from ratjax.config.train import TrainConfig
from ratjax.data import Batches, write_rows
from ratjax.errors import InputError
from ratjax.model.checkpoint import load_model, steps
from ratjax.model.parameters import to_model, to_parameters
from ratjax.model.views import effective_lengths
from ratjax.sparsity.dilated import Dilated
from ratjax.train import TrainingStopped, train
from ratjax.train.checkpoint import Checkpoints
from ratjax.train.gates import DEFINITION, make_gate_lengths
from ratjax.train.held_out import HeldOut
from ratjax.train.metrics import MeanLoss
from ratjax.train.state import TrainState
from tests.train.conftest import VOCAB, random_parameters, read_metrics
from tests.train.test_loop import losses
from tests.train.test_metrics import read_events

TOTAL = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(5)
    for name in ("seen", "unseen"):
        tokens = rng.integers(0, VOCAB, (24, 8), dtype=np.int32)
        write_rows(root / name, tokens, rng.random((24, 8)) < 0.7)
    return root


@pytest.fixture(scope="module")
def pieces(attention_config, sources):
    """A loss above the running mean is a spike here: about every other step is skipped."""
    settings = TrainConfig(
        learning_rate=1e-2,
        log_every=1,
        checkpoint_every=2,
        keep=1,
        keep_every=4,
        keep_best=1,
        held_out=((str(sources / "unseen"), 1.0),),
        held_out_every=3,
        held_out_batches=2,
        on_bad_step="skip",
        spike=1e-6,
        spike_window=1,
        max_skipped=100,
        profile="2:3",
        microbatches=2,
    )
    data = DataConfig((DataStage(TOTAL, 8, 4, ((str(sources / "seen"), 1.0),)),))
    return attention_config, settings, data


@pytest.fixture(scope="module")
def full(pieces, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "full"
    assert train(*pieces, workdir, {"revision": "abc", "train": {"steps": TOTAL}})
    return workdir


def test_skipped_steps_are_counted_and_change_nothing(full):
    lines = read_metrics(full)
    skipped = [line["skipped"] for line in lines]
    assert 0 < skipped[-1] < TOTAL and "skipped_in_row" not in lines[0]
    assert np.all(np.diff(skipped) >= 0)
    # The first loss is the mean; what lies above the mean of the good ones is skipped.
    good = [lines[0]["loss"]]
    for line, before in zip(lines[1:], skipped, strict=False):
        assert (line["skipped"] > before) == (line["loss"] > good[-1]), line["step"]
        if line["skipped"] == before:
            good.append(line["loss"])  # a window of one: the mean is the last good loss


def test_held_out_losses_are_those_of_the_saved_models(full, pieces):
    config, settings, data = pieces
    measured = {
        line["step"]: line["loss_held_out"]
        for line in read_metrics(full)
        if "loss_held_out" in line
    }
    assert list(measured) == [2, 3, 4, 6, 8]  # before each checkpoint, and every third step
    assert len({*measured.values()}) > 1
    span = schedule(settings, data)[0]
    held_out = HeldOut(config, settings, (span,), None)
    batches = [held_out.batches[0][n] for n in range(2)]
    for step in (4, 8):
        model = load_model(full, step=step)
        logits = np.concatenate([np.asarray(model(batch.tokens)) for batch in batches])
        targets = np.concatenate([batch.targets for batch in batches])
        mask = np.concatenate([batch.mask for batch in batches])
        log_probability = np.asarray(jax.nn.log_softmax(logits))
        picked = np.take_along_axis(log_probability, targets[..., None], -1)[..., 0]
        # the same sums in another order
        np.testing.assert_allclose(measured[step], -picked[mask].mean(), rtol=1e-5)


def test_the_held_out_loss_is_of_the_pattern_that_is_trained(full, pieces):
    config, settings, data = pieces
    adapted = dataclasses.replace(data.stages[0], recurrence="adapt")
    settings = dataclasses.replace(settings, held_out_batches=1, recurrence_dilation=4)
    (span,) = schedule(settings, DataConfig((adapted,)))
    held_out = HeldOut(config, settings, (span,), None)
    model, batch = load_model(full), held_out.batches[0][0]
    log_probability = np.asarray(jax.nn.log_softmax(model(batch.tokens, Dilated(4))))
    picked = np.take_along_axis(log_probability, batch.targets[..., None], -1)[..., 0]
    found = held_out.loss(to_parameters(model), span)
    # the same sums in another order
    np.testing.assert_allclose(found, -picked[batch.mask].mean(), rtol=1e-5)


def test_the_newest_the_best_and_every_fourth_are_kept(full):
    scores = {
        line["step"]: line["loss_held_out"] for line in read_metrics(full) if line["step"] % 2 == 0
    }
    best = min(scores, key=scores.get)
    assert steps(full) == sorted({4, 8, best})


def test_a_run_goes_on_as_if_it_had_not_stopped(full, pieces, tmp_path):
    """The guard's memory of losses included."""
    workdir = tmp_path / "stopped"
    shutil.copytree(full, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    assert train(*pieces, workdir)
    assert losses(workdir) == losses(full)
    ours, theirs = (to_parameters(load_model(path)) for path in (workdir, full))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert steps(workdir) == steps(full)


def test_each_checkpoint_says_what_made_it(full):
    notes = ocp.checkpointables_metadata(full / "checkpoints" / "8").custom_metadata
    assert notes["provenance"] == {"revision": "abc", "train": {"steps": TOTAL}}
    assert notes["versions"]["jax"] == jax.__version__
    assert notes["signature"]["train"]["spike"] == 1e-6
    assert notes["guard"]["skipped"] == read_metrics(full)[-1]["skipped"]


def test_the_named_steps_are_traced(full):
    traces = list((full / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 0
    content = traces[0].read_bytes()
    assert content.count(b"train_step") > 0


def test_curves_reach_tensorboard(full):
    tags = {
        value.tag for event in read_events(full / "tensorboard") for value in event.summary.value
    }
    assert {"train/loss", "train/loss_held_out", "train/skipped", "train/data_share"} <= tags


@pytest.mark.slow
def test_a_run_that_only_skips_ends(pieces, tmp_path):
    config, settings, data = pieces
    strict = dataclasses.replace(settings, max_skipped=1, spike=1e-6, profile="", held_out=())
    # no loss is below the mean of none: everything after the first is a spike
    strict = dataclasses.replace(strict, learning_rate=1e-30, end_learning_rate=0.0)
    with pytest.raises(TrainingStopped, match=r"more than train.max_skipped=1"):
        train(config, strict, data, tmp_path)


def test_held_out_folders_are_looked_at_before_anything_is_trained(pieces, tmp_path):
    config, settings, data = pieces
    lost = dataclasses.replace(settings, held_out=((str(tmp_path / "nowhere"), 1.0),))
    with pytest.raises(InputError, match="nowhere: data folder does not exist"):
        train(config, lost, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gate_lengths_are_the_geometric_mean(memory_config, pieces):
    """By `views`, which takes each layer apart."""
    _, settings, data = pieces
    batch = Batches(schedule(settings, data), 3, VOCAB)[0]
    parameters = random_parameters(memory_config)
    found = make_gate_lengths(memory_config)(parameters, jax.device_put(batch))
    heads = effective_lengths(to_model(memory_config, parameters), batch.tokens[:1])
    expected = np.exp(np.log(heads).mean(1))  # of each head's geometric mean
    assert found.shape == (memory_config.num_layers,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "geometric" in DEFINITION


def test_the_mean_loss_leaves_out_what_is_not_finite():
    mean = MeanLoss()
    assert mean.take() is None
    for loss in (1.0, float("nan"), 3.0):
        mean.add(loss)
    assert mean.take() == 2.0 and mean.take() is None


def test_best_by_training_loss_survives_a_restart(tmp_path):
    """Scores of earlier checkpoints are read back; one without a score is never the best."""
    config = TrainConfig(keep=1, keep_best=2)
    state = TrainState(np.int32(0), {"w": jax.numpy.ones(2)}, {"m": jax.numpy.ones(2)})
    for session in (((1, 5.0), (2, 3.0), (3, 4.0)), ((4, None), (5, 2.0), (6, 9.0))):
        checkpoints = Checkpoints(tmp_path, config)
        for step, loss in session:
            checkpoints.save(state._replace(step=np.int32(step)), {"next_index": step}, {}, loss)
        checkpoints.close()
        assert steps(tmp_path)[-1] == session[-1][0]
    assert steps(tmp_path) == [2, 5, 6]


def test_a_run_of_many_checkpoints_keeps_no_thread_and_no_file_of_each(tmp_path):
    state = TrainState(np.int32(0), {"w": jax.numpy.ones(2)}, {"m": jax.numpy.ones(2)})
    checkpoints, held = Checkpoints(tmp_path, TrainConfig(keep=1)), []
    for step in range(1, 9):
        checkpoints.save(state._replace(step=np.int32(step)), {"next_index": step}, {})
        checkpoints.finish()
        held.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    checkpoints.close()
    assert held[-1][0] <= held[1][0] and held[-1][1] <= held[1][1], held
