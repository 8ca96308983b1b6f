import json

import numpy as np
import pytest
import tokenizers

from ratjax.data import MissingDataError, Stream, open_source, write_stream
from ratjax.errors import InputError

EOS = 3
WORDS = ["a", "b", "c", "<eos>", "d", "e", "f", "g"]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def documents(count, seed=0):
    rng = np.random.default_rng(seed)
    letters = [word for word in WORDS if word != "<eos>"]
    return [" ".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(count)]


def tokens_of(texts, tokenizer):
    return [token for text in texts for token in [*tokenizer.encode(text).ids, EOS]]


def test_writer_round_trip_over_several_files(tmp_path, tokenizer):
    texts = documents(40)
    total = write_stream(tmp_path / "s", ["", *texts, ""], tokenizer, EOS, file_tokens=50)
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    files = [tmp_path / "s" / file["name"] for file in index["files"]]
    stored = np.concatenate([np.fromfile(file, "<u4") for file in files])
    assert stored.tolist() == tokens_of(texts, tokenizer)
    assert total == len(stored) == sum(file["tokens"] for file in index["files"])
    assert len(files) > 2 and index["documents"] == 40 and index["vocab_size"] == len(WORDS)
    for file in files:  # a document never spans files
        assert np.fromfile(file, "<u4")[-1] == EOS


def test_every_token_is_once_an_input_and_once_a_target(tmp_path, tokenizer):
    texts = documents(60)
    write_stream(tmp_path / "s", texts, tokenizer, EOS)
    tokens = np.asarray(tokens_of(texts, tokenizer))
    stream = Stream(tmp_path / "s", 16)
    assert len(stream) == (len(tokens) - 1) // 16
    batch = stream.read(np.arange(len(stream)))
    covered = len(stream) * 16
    assert np.array_equal(batch.tokens.ravel(), tokens[:covered])
    assert np.array_equal(batch.targets.ravel(), tokens[1 : covered + 1])
    # as published: no loss where the input is EOS
    assert np.array_equal(batch.mask.ravel(), tokens[:covered] != EOS)
    starts = np.concatenate([[True], tokens[: covered - 1] == EOS]).reshape(-1, 16)
    starts[:, 0] = True
    assert np.array_equal(batch.document_starts, starts)


def test_windows_do_not_cross_files(tmp_path, tokenizer):
    write_stream(tmp_path / "s", documents(60), tokenizer, EOS, file_tokens=40)
    stream = Stream(tmp_path / "s", 8)
    files = [np.fromfile(tmp_path / "s" / f["name"], "<u4") for f in stream.index["files"]]
    windows = [f[i * 8 : i * 8 + 9] for f in files for i in range((len(f) - 1) // 8)]
    assert len(stream) == len(windows)
    rng = np.random.default_rng(0)
    for record in rng.permutation(len(windows)):
        batch = stream.read(np.asarray([record]))
        assert np.array_equal(batch.tokens[0], windows[record][:-1])
        assert np.array_equal(batch.targets[0], windows[record][1:])


def test_no_text_leaves_no_folder(tmp_path, tokenizer):
    with pytest.raises(InputError, match="no text"):
        write_stream(tmp_path / "s", ["", ""], tokenizer, EOS)
    assert list(tmp_path.iterdir()) == []


def test_failure_while_writing_leaves_no_folder(tmp_path, tokenizer):
    def texts():
        yield from documents(5)
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        write_stream(tmp_path / "s", texts(), tokenizer, EOS)
    assert list(tmp_path.iterdir()) == []


def test_bad_streams_are_named_in_one_line(tmp_path, tokenizer):
    folder = tmp_path / "s"
    write_stream(folder, documents(20), tokenizer, EOS)
    with pytest.raises(InputError, match=r"too short: .* sequence_length=100000"):
        open_source(folder, 100_000)
    file = folder / "00000.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-2])
    with pytest.raises(InputError, match="truncated or changed"):
        open_source(folder, 8)
    file.unlink()
    with pytest.raises(MissingDataError, match="missing"):
        open_source(folder, 8)
    (folder / "index.json").write_text('{"files": []}')
    with pytest.raises(InputError, match="not the index of a token stream"):
        open_source(folder, 8)
