import json

import numpy as np
import pytest

from ratjax.data import MissingDataError, Stream, open_source
from ratjax.data.corpus.published import index_published
from ratjax.errors import InputError

EOS, VOCABULARY = 100_257, 100_278


def tokens(count, seed=0, vocabulary=VOCABULARY, eos=EOS):
    drawn = np.random.default_rng(seed).integers(0, vocabulary, count)
    drawn[::50] = eos
    return drawn


def raw(path, values, dtype="<u4"):
    path.parent.mkdir(parents=True, exist_ok=True)
    values.astype(dtype).tofile(path)
    return path


@pytest.fixture
def published(tmp_path):
    """Two headerless files as AI2 publishes them, in folders, and a README."""
    folder = tmp_path / "published"
    raw(folder / "b" / "part-1.npy", tokens(333, 1))
    raw(folder / "a" / "part-0.npy", tokens(500, 0))
    (folder / "README.md").write_text("tokens")
    return folder


def read(folder, length=16):
    """All windows of a stream, inputs and the last target of each."""
    stream = open_source(folder, length)
    assert isinstance(stream, Stream)
    batch = stream.read(np.arange(len(stream)))
    return batch, np.concatenate([batch.tokens, batch.targets[:, -1:]], 1)


def windows(values, length=16):
    return [
        values[i * length : i * length + length + 1] for i in range((len(values) - 1) // length)
    ]


def test_headerless_files_are_read_as_they_lie(published):
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*.npy")}
    index = index_published([str(published)], None, EOS, VOCABULARY)
    assert json.loads((published / "index.json").read_text()) == index
    assert [file["name"] for file in index["files"]] == ["a/part-0.npy", "b/part-1.npy"]
    batch, found = read(published)
    assert np.array_equal(found, [*windows(tokens(500, 0)), *windows(tokens(333, 1))])
    assert np.array_equal(batch.mask, batch.tokens != EOS) and not batch.mask.all()
    assert before == {path: path.stat().st_mtime_ns for path in published.rglob("*.npy")}


def test_an_index_elsewhere_points_to_them_in_the_order_named(published, tmp_path):
    names = [f"{published}/b", f"{published}/a/*.npy"]
    index_published(names, tmp_path / "index", EOS, VOCABULARY)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.json"]
    _, found = read(tmp_path / "index")
    assert np.array_equal(found, [*windows(tokens(333, 1)), *windows(tokens(500, 0))])
    # The same data is the same to a checkpoint, wherever its index lies.
    index_published(names, tmp_path / "again", EOS, VOCABULARY)
    one, other = (Stream(tmp_path / name, 8) for name in ("index", "again"))
    assert one.fingerprint == other.fingerprint


def test_small_vocabularies_are_uint16(tmp_path):
    values = tokens(200, vocabulary=50_000, eos=49_999)
    raw(tmp_path / "s" / "0.npy", values, "<u2")
    index = index_published([str(tmp_path / "s")], None, 49_999, 50_000)
    assert index["dtype"] == "uint16"
    assert np.array_equal(read(tmp_path / "s")[1], windows(values))


@pytest.mark.parametrize(("dtype", "version"), [("<u4", (1, 0)), ("<u2", (2, 0)), ("<u4", (3, 0))])
def test_headers_of_numpy_are_recognised(tmp_path, dtype, version):
    values = tokens(200, vocabulary=50_000, eos=49_999).astype(dtype)
    (tmp_path / "s").mkdir()
    with (tmp_path / "s" / "0.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version)
    # whatever headerless files would be
    index = index_published([str(tmp_path / "s")], None, 49_999, VOCABULARY)
    assert index["dtype"] == {"<u4": "uint32", "<u2": "uint16"}[dtype]
    assert index["files"][0]["offset"] >= 64
    assert np.array_equal(read(tmp_path / "s")[1], windows(values))


def test_without_writing(published):
    index = index_published([str(published)], None, EOS, VOCABULARY, write=False)
    assert len(index["files"]) == 2 and not (published / "index.json").exists()


def npy(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        # Two tokens of 16 bits, read as one of 32, are far beyond any vocabulary.
        (lambda f: raw(f, tokens(98, 0, 50_000, 9), "<u2"), {}, r"as uint32, .* or is uint16"),
        (lambda f: raw(f, tokens(99, 0, 50_000, 9)), {"dtype": "uint16"}, "every second uint16"),
        (lambda f: raw(f, tokens(99) + 50), {}, "beyond the vocabulary of 100278"),
        (lambda f: raw(f, tokens(99, eos=5)), {}, "eos_id=100257: not among the first tokens"),
        (lambda f: f.write_bytes(b"\0" * 7), {}, "7 bytes are no whole number of uint32"),
        (lambda f: f.write_bytes(b""), {}, "is empty"),
        (
            lambda f: npy(f, np.zeros(9)),
            {},
            r"must hold one row of uint32 or uint16, holds float64",
        ),
        (lambda f: npy(f, np.zeros((3, 3), "u4")), {}, r"one row .*\(3, 3\)"),
        (lambda f: f.write_bytes(b"\x93NUMPY\1\0\xff"), {}, "damaged header"),
        (lambda f: raw(f, tokens(99)), {"eos_id": VOCABULARY}, "outside the vocabulary"),
        (lambda f: raw(f, tokens(99)), {"dtype": "int32"}, "must be one of 'uint32', 'uint16'"),
    ],
)
def test_bad_files_are_one_line_and_no_index(tmp_path, make, options, message):
    (tmp_path / "s").mkdir()
    make(tmp_path / "s" / "0.npy")
    options = {"eos_id": EOS, "vocab_size": VOCABULARY, **options}
    with pytest.raises(InputError, match=message) as raised:
        index_published([str(tmp_path / "s")], None, **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "s" / "index.json").exists()


def test_truncated_header_file(tmp_path):
    npy(tmp_path / "s" / "0.npy", tokens(99).astype("<u4"))
    content = (tmp_path / "s" / "0.npy").read_bytes()
    (tmp_path / "s" / "0.npy").write_bytes(content[:-4])
    with pytest.raises(InputError, match="it was truncated"):
        index_published([str(tmp_path / "s")], None, EOS, VOCABULARY)


def test_mixed_types_missing_files_and_existing_indexes(tmp_path, published):
    npy(tmp_path / "mixed" / "0.npy", tokens(99).astype("<u4"))
    npy(tmp_path / "mixed" / "1.npy", tokens(99, 0, 50_000, 9).astype("<u2"))
    with pytest.raises(InputError, match="both uint16 and uint32"):
        index_published([str(tmp_path / "mixed")], None, EOS, VOCABULARY)
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty", "published/*.npz"):
        with pytest.raises(MissingDataError, match="no such file"):
            index_published([str(tmp_path / name)], tmp_path / "i", EOS, VOCABULARY)
    with pytest.raises(InputError, match="target=None: name a folder"):
        index_published([f"{published}/a", f"{published}/b"], None, EOS, VOCABULARY)
    index_published([str(published)], None, EOS, VOCABULARY)
    with pytest.raises(InputError, match=r"index\.json: exists"):
        index_published([str(published)], None, EOS, VOCABULARY)


def test_an_index_of_another_dtype_is_refused(published):
    index_published([str(published)], None, EOS, VOCABULARY)
    index = json.loads((published / "index.json").read_text())
    for dtype, message in (("int64", "must be one of"), ("uint16", "its index says")):
        (published / "index.json").write_text(json.dumps({**index, "dtype": dtype}))
        with pytest.raises(InputError, match=message):
            open_source(published, 16)
