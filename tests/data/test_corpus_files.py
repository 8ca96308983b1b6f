import pytest

from data.corpora import Hub
from ratjax.data import MissingDataError
from ratjax.data.corpus.files import InputFile, Part, expand, plan_shards
from ratjax.errors import InputError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(files, folder):
    return [file.name.removeprefix(f"{folder}/") for file in files]


def test_folders_patterns_and_files(tmp_path):
    touch(tmp_path, "b/2.jsonl", "b/1.parquet", "b/x/3.txt.gz", "a.json.zst", "b/README.md")
    touch(tmp_path, "b/.hidden/4.txt", "b/.5.txt")
    assert names(expand([f"{tmp_path}/b"]), tmp_path) == [
        "b/1.parquet",
        "b/2.jsonl",
        "b/x/3.txt.gz",
    ]
    # Each name's files are sorted; the names keep their order.
    found = expand([f"{tmp_path}/b/*.jsonl", f"{tmp_path}/a.json.zst", f"{tmp_path}/b/*.parquet"])
    assert names(found, tmp_path) == ["b/2.jsonl", "a.json.zst", "b/1.parquet"]
    assert [file.format for file in found] == ["json", "json", "parquet"]
    assert [file.compression for file in found] == ["", ".zst", ""]
    assert names(expand([f"{tmp_path}/b/**/*.txt.gz"]), tmp_path) == ["b/x/3.txt.gz"]


def test_a_name_with_signs_of_a_pattern_is_a_file_where_there_is_one(tmp_path):
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert names(expand([f"{tmp_path}/a[1].txt"]), tmp_path) == ["a[1].txt"]


def test_bad_names(tmp_path):
    touch(tmp_path, "a.txt", "a.csv", "empty/a.csv")
    for name in ("nothing.txt", "no*", "empty"):
        with pytest.raises(MissingDataError, match="no such file"):
            expand([f"{tmp_path}/{name}"])
    with pytest.raises(InputError, match=r"a\.csv: unknown format; must end in \.parquet, or"):
        expand([f"{tmp_path}/a.csv"])
    with pytest.raises(InputError, match=r"a\.txt: named twice"):
        expand([f"{tmp_path}/a.txt", f"{tmp_path}/*.txt"])
    with pytest.raises(InputError, match=r"nowhere://x: cannot be listed \(.*nowhere"):
        expand(["nowhere://x"])


def test_identity_is_the_content(tmp_path):
    touch(tmp_path, "a.txt")
    (before,) = expand([f"{tmp_path}/a.txt"])
    (tmp_path / "b.txt").write_text("a.txt")
    (moved,) = expand([f"{tmp_path}/b.txt"])
    assert moved.identity == before.identity
    (tmp_path / "a.txt").write_text("A.txt")
    assert expand([f"{tmp_path}/a.txt"])[0].identity != before.identity


def test_names_on_the_hub(hub):
    for name, text in (("b.jsonl", "line\n" * 5), ("a.parquet", "p"), ("README.md", "r")):
        hub.pipe(f"/datasets/owner/name/data/{name}", text.encode())
    found = expand(["hf://datasets/owner/name/data"])
    assert [file.name.removeprefix("hf://").lstrip("/") for file in found] == [
        "datasets/owner/name/data/a.parquet",
        "datasets/owner/name/data/b.jsonl",
    ]
    assert all(file.remote and file.identity.startswith("blob of ") for file in found)
    with found[1].open() as source:  # seekable, as readers of parts need it
        source.seek(5)
        assert source.readline() == b"line\n"
    assert expand(["hf://datasets/owner/name/data/*.jsonl"]) == found[1:]
    with pytest.raises(MissingDataError, match="hf://datasets/owner/other: no such file"):
        expand(["hf://datasets/owner/other"])


def test_a_hub_that_fails_is_one_line(hub):
    hub.pipe("/datasets/a.jsonl", b"{}\n")
    Hub.broken = True
    with pytest.raises(MissingDataError, match=r"a\.jsonl: cannot be listed \(503 the hub\)$"):
        expand(["hf://datasets/a.jsonl"])


def file(name, size):
    return InputFile(name, size, "")


def test_large_files_are_cut_and_small_ones_joined():
    files = [file("a.jsonl", 25), file("b.jsonl", 3), file("c.txt", 4), file("d.txt", 4)]
    big = [file("e.jsonl.gz", 40), file("f.txt", 40), file("g.parquet", 20)]
    shards = plan_shards([*files, *big], 10)
    assert [[(p.file.name, p.number, p.parts) for p in shard] for shard in shards] == [
        [("a.jsonl", 0, 3)],
        [("a.jsonl", 1, 3)],
        [("a.jsonl", 2, 3)],
        [("b.jsonl", 0, 1), ("c.txt", 0, 1)],
        [("d.txt", 0, 1)],
        [("e.jsonl.gz", 0, 1)],  # neither can be cut
        [("f.txt", 0, 1)],
        [("g.parquet", 0, 2)],
        [("g.parquet", 1, 2)],
    ]
    assert sum(part.size for shard in shards for part in shard) == 136


def test_parts_cover_a_file():
    for size in (1, 2, 7, 100):
        for parts in (1, 2, 3, 7):
            assert sum(Part(file("a.jsonl", size), n, parts).size for n in range(parts)) == size
