"""Streams, their held-out part and rows of a fine-tuning, mixed in one run."""

import numpy as np
import pytest

from data import corpora
from data.corpora import EOS, Quiet, documents, make_job
from ratjax.config.data import DataConfig, DataStage, schedule
from ratjax.config.train import TrainConfig
from ratjax.data import Batches, open_source, write_rows
from ratjax.data.corpus.job import run
from ratjax.data.stream import write_index
from ratjax.errors import InputError

LENGTH, ANSWER, VOCAB = 8, 3, 40
ROWS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tokenized corpus, and rows that name themselves: row r is of tokens 20 + r."""
    root = tmp_path_factory.mktemp("mixture")
    source = corpora.write_json_lines(root / "a.jsonl", documents(60))
    run(make_job(root / "stream", source), 0, Quiet())
    tokens = np.repeat(20 + np.arange(ROWS, dtype=np.int32)[:, None], LENGTH, 1)
    tokens[:, -1] = EOS  # ends the answer, and is to be predicted as the last of it
    mask = np.zeros(tokens.shape, bool)
    mask[:, -ANSWER:] = True
    write_rows(root / "rows", tokens, mask)
    return root


def batches(root, sources, steps=12, batch_size=6, **train):
    pairs = tuple((str(root / name), weight) for name, weight in sources)
    data = DataConfig((DataStage(steps, LENGTH, batch_size, pairs),))
    config = TrainConfig(**train)
    return Batches(schedule(config, data), config.seed, VOCAB)


def records(run, field="tokens"):
    """All sequences of a run, one after another."""
    return np.concatenate([getattr(run[step], field) for step in range(len(run))])


def is_row(sequences):
    return sequences[:, 0] >= 20


def test_each_source_keeps_its_own_loss_mask(root):
    run = batches(root, [("stream", 2.0), ("rows", 1.0)])
    tokens, targets, mask = (records(run, name) for name in ("tokens", "targets", "mask"))
    rows = is_row(tokens)
    assert rows.sum() == len(tokens) // 3
    # Rows: the answer alone, at the inputs that predict it; its EOS counts.
    expected = np.zeros(LENGTH, bool)
    expected[-ANSWER - 1 : -1] = True
    assert np.array_equal(mask[rows], np.tile(expected, (rows.sum(), 1)))
    assert np.all(targets[rows][:, LENGTH - 2] == EOS)
    # Streams: everything but what follows an EOS.
    assert np.array_equal(mask[~rows], tokens[~rows] != EOS)
    assert (~mask[~rows]).sum() > 0
    assert run.most_targets(run.spans[0]) == LENGTH  # of any record: here the stream's


def test_every_batch_has_its_share(root):
    run = batches(root, [("stream", 2.0), ("rows", 1.0)])
    for step in range(len(run)):
        assert is_row(run[step].tokens).sum() == 2


def test_held_out_windows_are_in_no_training_batch(root):
    run = batches(root, [("stream", 1.0), ("rows", 1.0)], steps=40)
    trained = {tuple(sequence) for sequence in records(run).tolist()}
    held_out = open_source(root / "stream" / "held_out", LENGTH)
    windows = held_out.read(np.arange(len(held_out))).tokens.tolist()
    assert windows and not trained & {tuple(window) for window in windows}
    # and they are a source like any other
    validation = batches(root, [("stream/held_out", 1.0)], steps=2, batch_size=len(held_out))
    for step in range(2):  # all of it in each epoch
        assert sorted(validation[step].tokens.tolist()) == sorted(windows)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_record_k_depends_on_neither_batches_nor_steps(root, batch_size):
    sources = [("stream", 2.0), ("rows", 1.0)]
    whole = records(batches(root, sources, steps=6, batch_size=6))
    other = batches(root, sources, steps=36 // batch_size, batch_size=batch_size)
    assert np.array_equal(records(other), whole)
    # read backwards, one at a time
    alone = [other[step].tokens for step in reversed(range(len(other)))]
    assert np.array_equal(np.concatenate(alone[::-1]), whole)


def test_the_order_of_a_mixture_is_fixed_for_all_time(root):
    # A checkpoint holds a step number alone: another order would repeat some data and skip some.
    run = batches(root, [("stream", 1.0), ("rows", 1.0)], steps=5, batch_size=4, seed=1005)
    stream = open_source(root / "stream", LENGTH)
    windows = stream.read(np.arange(len(stream))).tokens.tolist()
    named = [f"row {s[0] - 20}" if s[0] >= 20 else windows.index(s) for s in records(run).tolist()]
    rows, windows = named[1::2], named[::2]
    assert rows == [f"row {number}" for number in (3, 5, 1, 7, 4, 8, 9, 0, 6, 2)]
    assert windows == [11, 30, 38, 68, 28, 45, 56, 76, 66, 69]


def test_tokens_beyond_int32_are_named(root, tmp_path):
    (tmp_path / "s").mkdir()
    np.full(20, 2**32 - 1, "<u4").tofile(tmp_path / "s" / "0.bin")
    write_index(tmp_path / "s", {"0.bin": 20}, EOS)
    with pytest.raises(InputError, match=f"holds token {2**32 - 1}, but the model's vocab_size"):
        batches(tmp_path, [("s", 1.0)])[0]
