import dataclasses

import jax
import numpy as np
import pytest

from ratjax.config.data import DataConfig, DataStage, schedule
from ratjax.config.train import TrainConfig
from ratjax.data import Batches, iterate, write_rows
from ratjax.errors import InputError

VOCAB = 100


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders whose rows name themselves: every token of row r of folder f is 20 f + r."""
    root = tmp_path_factory.mktemp("data")
    for number, (name, rows, length) in enumerate([("a", 20, 4), ("b", 7, 4), ("c", 20, 8)]):
        tokens = np.repeat(20 * number + np.arange(rows, dtype=np.int32)[:, None], length, 1)
        write_rows(root / name, tokens, np.ones((rows, length), bool))
    return root


@pytest.fixture
def data(root):
    stages = (
        DataStage(6, 4, 5, ((str(root / "a"), 3.0), (str(root / "b"), 1.0))),
        DataStage(4, 8, 2, ((str(root / "c"), 1.0),)),
    )
    return DataConfig(stages)


def batches(data, vocab_size=VOCAB, **train):
    config = TrainConfig(**train)
    return Batches(schedule(config, data), config.seed, vocab_size)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_stages_follow_each_other_and_the_last_runs_on(data):
    run = batches(data, steps=15)
    assert len(run) == 15
    shapes = [run[step].tokens.shape for step in range(15)]
    assert shapes == [(5, 4)] * 6 + [(2, 8)] * 9


def test_mixture_and_epochs(data):
    run = batches(data)
    seen = np.concatenate([run[step].tokens[:, 0] for step in range(6)])
    assert (seen < 20).sum() in (22, 23) and (seen >= 20).sum() in (7, 8)  # 30 records at 3:1
    assert sorted(seen[seen < 20][:20]) == list(range(20))  # all of a before any of it again
    assert sorted(seen[seen >= 20][:7]) == list(range(20, 27))


def test_iterator_gives_the_batches_and_resumes_anywhere(data):
    run = batches(data, steps=13)
    iterator = iterate(run, {"next_index": 0}, prefetch=2)
    for step in range(13):
        assert iterator.get_state() == {"next_index": step}
        assert equal(next(iterator), run[step])
    with pytest.raises(StopIteration):
        next(iterator)
    for start in (1, 5, 6, 7, 12):  # 6 is the border between the stages
        resumed = iterate(run, {"next_index": start}, prefetch=3)
        assert equal(next(resumed), run[start])


def test_order_depends_on_the_seed_and_on_nothing_of_the_model(data):
    run = batches(data, seed=1)
    assert all(equal(run[step], batches(data, 4096, seed=1)[step]) for step in range(10))
    # nor on how long the run is, how it is cut or how fast it learns
    other = batches(data, seed=1, steps=30, learning_rate=1e-2, log_every=7)
    assert all(equal(run[step], other[step]) for step in range(10))
    assert not equal(run[0], batches(data, seed=2)[0])


def test_both_backbones_read_identical_data(data):
    from ratjax.config.experiment import Experiment
    from ratjax.config.model import ModelConfig

    experiment = Experiment("pair", ModelConfig(VOCAB, 16, 1, 2, 2, 8, 16), data=data)
    runs = []
    for backbone in experiment.backbones:
        spans = schedule(experiment.train, experiment.data)
        vocabulary = experiment.model_config(backbone).vocab_size
        runs.append(Batches(spans, experiment.train.seed, vocabulary))
    attention, memory = runs
    assert attention.signature() == memory.signature()
    assert all(equal(attention[step], memory[step]) for step in range(len(attention)))


def test_batches_are_a_pytree_that_jax_takes(data):
    batch = batches(data)[0]
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype.name), batch)
    assert shapes == type(batch)(
        ((5, 4), "int32"), ((5, 4), "int32"), ((5, 4), "bool"), ((5, 4), "bool")
    )


def test_tokens_beyond_the_vocabulary(data, root):
    with pytest.raises(InputError, match=r"holds token \d+, but the model's vocab_size is 10"):
        batches(data, vocab_size=10)[0]
    tokens = np.zeros((3, 4), np.int32)
    write_rows(root / "declared", tokens, np.ones((3, 4), bool), vocab_size=500)
    stage = DataStage(1, 4, 1, ((str(root / "declared"), 1.0),))
    with pytest.raises(InputError, match="vocabulary of 500, but the model's vocab_size is 100"):
        batches(DataConfig((stage,)))


def test_errors_of_the_reading_thread_reach_the_loop(data):
    iterator = iterate(batches(data, vocab_size=10), {"next_index": 0}, prefetch=2)
    with pytest.raises(InputError, match="vocab_size is 10"):
        for _ in range(3):
            next(iterator)


def test_signature_notices_other_data(data, root):
    before = batches(data).signature()
    assert before == batches(data).signature()
    tokens = np.load(root / "a" / "tokens.npy")
    write_rows(root / "a2", tokens, np.ones(tokens.shape, bool))
    stage = data.stages[0]

    def with_sources(*sources):
        changed = dataclasses.replace(stage, sources=sources)
        return batches(dataclasses.replace(data, stages=(changed, data.stages[1]))).signature()

    b = (str(root / "b"), 1.0)
    assert with_sources((str(root / "a2"), 3.0), b) == before  # the same data by another name
    assert with_sources((str(root / "a"), 2.0), b) != before
    tokens[19, 3] = 0
    write_rows(root / "a3", tokens, np.ones(tokens.shape, bool))
    assert with_sources((str(root / "a3"), 3.0), b) != before
