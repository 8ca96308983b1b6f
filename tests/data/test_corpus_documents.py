import gzip
import json
import sys

import pytest

from data.corpora import documents as made
from data.corpora import write_json_lines
from ratjax.data.corpus.documents import check_readers, documents
from ratjax.data.corpus.files import Part, expand
from ratjax.errors import InputError


def read(path, parts=1, field="text", separator=None):
    (file,) = expand([str(path)])
    return [
        text
        for number in range(parts)
        for text in documents(Part(file, number, parts), field, separator)
    ]


@pytest.mark.parametrize("parts", [1, 2, 3, 10, 500])
def test_parts_of_json_lines_hold_every_document_once(tmp_path, parts):
    texts = made(40)
    assert read(write_json_lines(tmp_path / "a.jsonl", texts), parts) == texts


def test_every_cut_of_json_lines(tmp_path):
    # Lines of one byte more each, and none at the end: a cut falls before, on and behind
    # every line's end. The last line has no newline, the third is blank.
    lines = [json.dumps("x" * n) for n in range(6)]
    content = "\n".join(f'{{"t":{line}}}' for line in lines).replace("\n", "\n \n", 1)
    (tmp_path / "a.jsonl").write_text(content)
    for parts in range(1, len(content) + 3):
        assert read(tmp_path / "a.jsonl", parts, "t") == ["x" * n for n in range(6)]


def test_compressed_json_lines_and_text(tmp_path):
    texts = made(300)
    assert read(write_json_lines(tmp_path / "a.jsonl.gz", texts)) == texts
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("<|>".join(texts).encode()))
    assert read(tmp_path / "b.txt.gz", separator="<|>") == texts


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    texts = made(300)
    plain = write_json_lines(tmp_path / "a.jsonl", texts).read_bytes()
    # Two frames: files that were joined are read to their end.
    frames = b"".join(zstandard.compress(half) for half in (plain[:999], plain[999:]))
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert read(tmp_path / "a.jsonl.zst") == texts
    (tmp_path / "b.jsonl.zst").write_bytes(b"no zstandard at all")
    with pytest.raises(InputError, match=r"b\.jsonl\.zst: not readable"):
        read(tmp_path / "b.jsonl.zst")


def test_text_is_one_document_or_parted(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo €\n\nthree")
    assert read(path) == ["one\n\ntwo €\n\nthree"]
    for size in range(1, 9):  # chunks that end within the separator, and within the €
        monkeypatch.setattr("ratjax.data.corpus.documents.BUFFER", size)
        assert read(path, separator="\n\n") == ["one", "two €", "three"]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 9])
def test_parquet(tmp_path, parts):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = made(50)
    columns = {"id": list(range(51)), "text": [*texts[:7], None, *texts[7:]]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=8)
    assert read(tmp_path / "a.parquet", parts) == texts
    encoded = pa.table({"t": pa.array(texts).dictionary_encode()})
    parquet.write_table(encoded, tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", parts, "t") == texts


def test_parts_of_files_on_the_hub(tmp_path, hub):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = made(50)
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=8)
    write_json_lines(tmp_path / "b.jsonl", texts)
    write_json_lines(tmp_path / "c.jsonl.gz", texts)
    for name, parts in (("a.parquet", 3), ("b.jsonl", 4), ("c.jsonl.gz", 1)):
        hub.pipe(f"/datasets/owner/name/{name}", (tmp_path / name).read_bytes())
        assert read(f"hf://datasets/owner/name/{name}", parts) == texts


def test_bad_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1], "texts": ["a"]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: has no column 'text'; did you mean texts"):
        read(path)
    with pytest.raises(InputError, match="column 'id' must be text, is int64"):
        read(path, field="id")
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(InputError, match=r"a\.parquet: not readable \(") as raised:
        read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", }', r"not a line of JSON \("),
        ('{"text": "\\ud8"}', r"not a line of JSON \("),
        (b'{"text": "\xff"}', r"not a line of JSON \(.*utf-8"),
        ('["text"]', "must be a JSON object, is list"),
        ('{"texts": "a"}', "has no field 'text'; did you mean texts"),
        ('{"text": 3}', "field 'text' must be text, is int"),
    ],
)
@pytest.mark.parametrize("parts", [1, 4])
def test_a_bad_line_is_named_with_its_number(tmp_path, line, message, parts):
    path = write_json_lines(tmp_path / "a.jsonl", made(20))
    lines = path.read_bytes().split(b"\n")
    lines.insert(16, line if isinstance(line, bytes) else line.encode())
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=rf"a\.jsonl:17: {message}") as raised:
        read(path, parts)
    assert "\n" not in str(raised.value)


def test_a_record_without_text_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "a"}\n')
    assert read(tmp_path / "a.jsonl") == ["a"]


def test_damaged_files_are_one_line(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl.gz", made(2000))
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "b.jsonl.gz").write_bytes(b"not compressed")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    for name in ("a.jsonl.gz", "b.jsonl.gz", "c.txt"):
        with pytest.raises(InputError, match=rf"{name}: not readable \(") as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    for name, library in (("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"")
        monkeypatch.setitem(sys.modules, library, None)
        if library == "pyarrow":
            monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(InputError, match=rf"need {library}.*pip install 'ratjax\[data\]'"):
            check_readers(expand([str(tmp_path / name)]))
