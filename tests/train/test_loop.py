"""Whole runs: what they write, and that stopping and resuming leaves no trace in the losses."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tokenizers

from ratjax.config.model import MemoryConfig
from ratjax.config.overrides import to_json
from ratjax.config.train import TrainConfig
from ratjax.data import Batches
from ratjax.errors import InputError
from ratjax.files import alone_in
from ratjax.model.checkpoint import load_model, save_model, steps
from ratjax.model.parameters import to_model, to_parameters
from ratjax.train import TrainingStopped, checkpoint, loop, state, train
from ratjax.train.checkpoint import compare
from tests.train.conftest import VOCAB, random_parameters, read_metrics

TOTAL = 6
TIMES = ("tokens_per_s", "mfu", "data_seconds", "data_share")


@pytest.fixture(scope="module")
def pieces(memory_config, train_config, data_config):
    """The arguments of every run here: checkpoints after each step, all of them kept."""
    return memory_config, dataclasses.replace(train_config, checkpoint_every=1), data_config


@pytest.fixture(scope="module")
def full(pieces, tmp_path_factory):
    """A run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("runs") / "full"
    assert train(*pieces, workdir, {"revision": "abc"})
    return workdir


@pytest.fixture
def copy(full, tmp_path):
    """A copy of that run as if it had been stopped after `step`."""

    def make(step):
        target = tmp_path / f"stopped-{step}"
        shutil.copytree(full, target)
        for later in steps(target):
            if later > step:
                shutil.rmtree(target / "checkpoints" / str(later))
        return target

    return make


def losses(workdir):
    """Everything that a run computes, to the last bit."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(workdir)
    ]


def assert_same_run(workdir, full):
    assert losses(workdir) == losses(full)
    ours, theirs = (to_parameters(load_model(path)) for path in (workdir, full))
    for name in theirs:
        assert np.array_equal(ours[name], theirs[name]), name


def test_metrics(full, pieces):
    _, config, data = pieces
    lines = read_metrics(full)
    assert [line["step"] for line in lines] == list(range(1, TOTAL + 1))
    assert [list(line)[:2] for line in lines] == [["step", "loss"]] * TOTAL
    assert ["loss_sparse" in line for line in lines] == [True] * 3 + [False] * 3
    batches = Batches(loop.schedule(config, data), config.seed, VOCAB)
    assert [line["targets"] for line in lines] == [batches[n].mask.sum() for n in range(TOTAL)]
    # null where the time would be that of compilation: the first step of each shape
    assert [line["tokens_per_s"] is None for line in lines] == [True, False, False] * 2
    assert all(line["mfu"] is None for line in lines)  # the peak of a CPU is not known
    assert all(0.5 < line["loss"] < 10 and line["grad_norm"] > 0 for line in lines)
    # near 2, as gates near a half make it, and changing
    lengths = [length for line in lines for length in line["gate_lengths"]]
    assert len({*lengths}) == TOTAL and all(1.5 < length < 2.5 for length in lengths)
    assert (full / "tensorboard").is_dir() and any((full / "tensorboard").iterdir())


def test_workdir_is_a_model_folder(full, pieces):
    card = json.loads((full / "model.json").read_text())
    assert card["provenance"] == {"revision": "abc"}
    assert set(card["versions"]) == {"ratjax", "jax", "flax", "orbax-checkpoint"}
    assert load_model(full).config == pieces[0]
    assert steps(full) == list(range(1, TOTAL + 1))


def test_a_second_damaged_checkpoint_of_a_step_takes_another_name(tmp_path):
    for _ in range(3):
        (tmp_path / "4" / "params").mkdir(parents=True)
        checkpoint._set_aside(tmp_path / "4")
    assert {path.name for path in tmp_path.iterdir()} == {
        "4.damaged", "4.damaged.2", "4.damaged.3"
    }  # fmt: skip


@pytest.mark.parametrize("step", [1, 3, 4])  # 3 is the border between the two stages
def test_resume_equals_no_stop(step, copy, full, pieces, capsys):
    workdir = copy(step)
    assert train(*pieces, workdir)
    assert f"resuming from step {step} of {TOTAL}" in capsys.readouterr().out
    assert_same_run(workdir, full)


def test_a_second_start_in_a_folder_leaves_the_first_alone(copy, pieces):
    workdir = copy(4)
    before = (workdir / "metrics.jsonl").read_bytes()
    with alone_in(workdir), pytest.raises(InputError, match="another process is at work on it"):
        train(*pieces, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert train(*pieces, workdir)


def test_a_finished_run_is_left_alone(copy, full, pieces):
    workdir = copy(TOTAL)
    assert train(*pieces, workdir)
    assert_same_run(workdir, full)


def interrupted(monkeypatch, at, action):
    """Lets `action` happen when the run asks for batch `at` (from 0)."""
    original = loop.iterate

    class Iterator:
        def __init__(self, *arguments):
            self.inner = original(*arguments)
            self.get_state, self.close = self.inner.get_state, self.inner.close

        def __next__(self):
            if self.get_state()["next_index"] == at:
                action()
            return next(self.inner)

    monkeypatch.setattr(loop, "iterate", Iterator)


class Crash(Exception):
    pass


def crash():
    raise Crash


def test_crash_between_checkpoints(tmp_path, full, pieces, monkeypatch):
    config, every, data = pieces
    rarely = dataclasses.replace(every, checkpoint_every=2)
    with monkeypatch.context() as patch:
        interrupted(patch, 5, crash)
        with pytest.raises(Crash):
            train(config, rarely, data, tmp_path)
    assert steps(tmp_path)[-1] == 4
    assert read_metrics(tmp_path)[-1]["step"] == 4
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')  # as a harder crash leaves it
    assert train(config, rarely, data, tmp_path)
    assert_same_run(tmp_path, full)


def test_sigterm_saves_and_the_run_goes_on_later(tmp_path, full, pieces, monkeypatch):
    config, every, data = pieces
    never = dataclasses.replace(every, checkpoint_every=100)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupted(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, never, data, tmp_path) is False
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps(tmp_path) == [4]  # the step in flight is finished first
    assert train(config, never, data, tmp_path)
    assert_same_run(tmp_path, full)


def poisoned(monkeypatch, at, name):
    """Makes a metric of step `at` not a number."""
    original = loop.make_train_step

    def make(*arguments):
        step = original(*arguments)

        def run(state, *rest):
            number = int(state.step) + 1
            state, metrics = step(state, *rest)
            if number == at:
                metrics[name] = metrics[name] * np.float32(np.nan)
            return state, metrics

        return run

    monkeypatch.setattr(loop, "make_train_step", make)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_stops_where_the_loss_is_not_finite(name, tmp_path, full, pieces, monkeypatch):
    with monkeypatch.context() as patch:
        poisoned(patch, 4, name)
        with pytest.raises(TrainingStopped, match=f"{name} is nan at step 4"):
            train(*pieces, tmp_path)
    assert steps(tmp_path) == [1, 2, 3]  # the last good one, and nothing after it
    assert read_metrics(tmp_path)[-1]["step"] == 3
    assert train(*pieces, tmp_path)
    assert_same_run(tmp_path, full)


def halve(path):
    largest = max(path.rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        halve,
        lambda path: shutil.rmtree(path / "optimizer"),
        lambda path: shutil.rmtree(path / "params"),
        lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(damage, copy, full, pieces, capsys):
    workdir = copy(5)
    damage(workdir / "checkpoints" / "5")
    assert train(*pieces, workdir)
    printed = capsys.readouterr()
    assert printed.out.count("skipped") == 1 and "resuming from step 4" in printed.out
    assert_same_run(workdir, full)
    assert (workdir / "checkpoints" / "5.damaged").is_dir()
    assert 5 in steps(workdir)  # written anew


def test_damage_everywhere_is_an_error_and_nothing_is_touched(copy, pieces):
    workdir = copy(2)
    for step in (1, 2):
        halve(workdir / "checkpoints" / str(step))
    before = sorted(path for path in workdir.rglob("*"))
    with pytest.raises(InputError, match="none of its 2 checkpoints can be read"):
        train(*pieces, workdir)
    assert sorted(path for path in workdir.rglob("*")) == before


def with_stage(data, **change):
    return dataclasses.replace(
        data, stages=(dataclasses.replace(data.stages[0], **change), *data.stages[1:])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t, d: (dataclasses.replace(m, rope_theta=1e4), t, d), "model.rope_theta=500000"),
        (lambda m, t, d: (dataclasses.replace(m, memory=None), t, d), "model.memory={"),
        (lambda m, t, d: (m, dataclasses.replace(t, seed=4), d), "seed=3, now it is 4"),
        (lambda m, t, d: (m, t, with_stage(d, batch_size=8)), r"data\[0\].batch_size=4, now .* 8"),
        (lambda m, t, d: (m, t, with_stage(d, recurrence="off")), r"data\[0\].recurrence"),
    ],
)
def test_what_cannot_be_resumed_is_refused(change, message, copy, pieces):
    workdir = copy(2)
    card = (workdir / "model.json").read_text()
    with pytest.raises(InputError, match=f"was trained with .*{message}"):
        train(*change(*pieces), workdir)
    assert (workdir / "model.json").read_text() == card


def test_what_can_be_resumed_is_said(copy, pieces, capsys):
    model, config, data = pieces
    workdir = copy(4)
    assert train(model, dataclasses.replace(config, log_every=4, keep=1), data, workdir)
    printed = capsys.readouterr().out
    assert "resuming with train.log_every=4, before it was 1" in printed
    assert "resuming with train.keep=1, before it was 10" in printed
    assert [line["step"] for line in read_metrics(workdir)] == [1, 2, 3, 4, 6]  # 6 is the last
    assert steps(workdir) == [6]


def test_how_a_model_is_computed_may_change(tmp_path, memory_config, capsys):
    def signature(model):
        return {"model": to_json(model), "train": to_json(TrainConfig()), "data": []}

    old = signature(memory_config)
    new = signature(dataclasses.replace(memory_config, remat="full", dtype="bfloat16"))
    compare(tmp_path, old, new, step=3)
    assert capsys.readouterr().out.splitlines() == [
        "resuming with model.dtype='bfloat16', before it was 'float32'",
        "resuming with model.remat='full', before it was 'none'",
    ]
    # a checkpoint from before a field existed had its default
    del old["model"]["qk_norm"], old["train"]["on_bad_step"]
    compare(tmp_path, old, signature(memory_config), step=3)
    assert capsys.readouterr().out == ""


def test_data_of_a_later_stage_may_change(copy, pieces):
    model, config, data = pieces
    (folder, _), *_ = data.stages[1].sources
    later = dataclasses.replace(data.stages[1], sources=((folder, 2.0),))
    data = dataclasses.replace(data, stages=(data.stages[0], later))
    assert train(model, config, data, copy(2))
    with pytest.raises(InputError, match=r"data\[1\].sources\[0\]\[1\]=1.0, now it is 2.0"):
        train(model, config, data, copy(4))


@pytest.fixture(scope="module")
def trained_attention(attention_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "attention"
    parameters = random_parameters(attention_config)
    save_model(folder, to_model(attention_config, parameters), None, {})
    return folder


def test_starting_from_a_model_adds_the_memory(trained_attention, memory_config, train_config):
    config = dataclasses.replace(memory_config, memory=MemoryConfig(init_bias=-4.0))
    start = dataclasses.replace(train_config, init_from=str(trained_attention))
    parameters = state.fresh_state(config, start).parameters
    theirs = to_parameters(load_model(trained_attention))
    for name, value in parameters.items():
        if name in theirs:
            assert np.array_equal(value, theirs[name]), name
        else:
            assert "/memory/" in name
            assert np.all(np.asarray(value) == (-4.0 if name.endswith("bias") else 0.0))
    assert len(parameters) == len(theirs) + 2


def test_starting_from_a_model_of_another_shape(
    trained_attention, full, attention_config, train_config, capsys
):
    start = dataclasses.replace(train_config, init_from=str(trained_attention))
    wider = dataclasses.replace(attention_config, intermediate_size=24)
    with pytest.raises(InputError, match="not a checkpoint of this model: blocks/mlp"):
        state.fresh_state(wider, start)
    # a memory is not thrown away in silence
    start = dataclasses.replace(train_config, init_from=str(full))
    with pytest.raises(InputError, match="memory"):
        state.fresh_state(attention_config, start)
    # and what shapes do not show is said
    start = dataclasses.replace(train_config, init_from=str(trained_attention))
    state.fresh_state(dataclasses.replace(attention_config, rope_theta=1e4), start)
    assert "model.rope_theta=500000.0, now it is 10000.0" in capsys.readouterr().out


def test_the_tokenizer_is_copied_and_must_fit(tmp_path, pieces):
    model, config, data = pieces

    def tokenizer(size):
        words = {f"w{n}": n for n in range(size)}
        path = tmp_path / f"{size}.json"
        tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(path))
        return dataclasses.replace(data, tokenizer=str(path))

    with pytest.raises(InputError, match=f"model.vocab_size={VOCAB}: is less than the 33 tokens"):
        train(model, config, tokenizer(33), tmp_path / "run")
    with pytest.raises(InputError, match="not readable as a tokenizer"):
        train(model, config, dataclasses.replace(data, tokenizer="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(model, config, tokenizer(32), tmp_path / "run")
    copied = (tmp_path / "run" / "tokenizer.json").read_bytes()
    assert copied == (tmp_path / "32.json").read_bytes()


def test_a_gate_fixed_at_identity_is_not_trained(tmp_path, pieces):
    model, config, data = pieces
    fixed = dataclasses.replace(model, memory=MemoryConfig(init="identity"))
    with pytest.raises(InputError, match="cannot be trained"):
        train(fixed, config, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_jit_compiles_each_shape_once(full, pieces):
    step = loop.make_train_step(pieces[0], pieces[1], TOTAL, None)
    assert step._cache_size() == 2  # fresh and resumed runs alike
