import dataclasses
import fcntl
import io
import json
import os

import numpy as np
import pytest

from data import corpora
from data.corpora import EOS, Quiet, content, documents, make_job, stored, tokens_of
from ratjax.data import Stream, open_source
from ratjax.data.corpus.job import run
from ratjax.data.corpus.progress import Progress
from ratjax.data.corpus.shard import file_name, is_held_out
from ratjax.data.encoding import cached_tokenizer
from ratjax.errors import InputError

TEXTS = documents(200)


@pytest.fixture
def source(tmp_path):
    """Documents in three files of two formats."""
    corpora.write_json_lines(tmp_path / "source" / "a.jsonl", TEXTS[:120])
    corpora.write_json_lines(tmp_path / "source" / "b.jsonl.gz", TEXTS[120:150])
    (tmp_path / "source" / "c.txt").write_text("\n".join(TEXTS[150:]))
    return tmp_path / "source"


def make(folder, source, **fields):
    return make_job(folder, source, separator="\n", **fields)


def sides(texts, share=0.2):
    held = [text for text in texts if is_held_out(text, share)]
    return [text for text in texts if text not in held], held


def test_every_document_is_once_in_one_of_the_streams(tmp_path, source):
    job = make(tmp_path / "out", source)
    progress = Quiet()
    counts = run(job, 0, progress)
    kept, held_out = sides(TEXTS)
    assert len(held_out) > 20
    assert stored(tmp_path / "out") == tokens_of(kept)
    assert stored(tmp_path / "out" / "held_out") == tokens_of(held_out)
    assert dataclasses.astuple(counts) == (
        len(tokens_of(kept)),
        len(kept),
        len(tokens_of(held_out)),
        len(held_out),
    )
    assert len(job.shards) > 5  # else the test would show little
    assert progress.made == counts.tokens + counts.held_out_tokens
    assert progress.read == progress.total == sum(file.stat().st_size for file in source.iterdir())
    # and both can be trained on
    for folder in ("out", "out/held_out"):
        opened = open_source(tmp_path / folder, 8)
        assert isinstance(opened, Stream) and opened.index["vocab_size"] == len(corpora.WORDS)


def test_processes_and_resuming_change_no_byte(tmp_path, source):
    run(make(tmp_path / "a", source), 0, Quiet())
    expected = content(tmp_path / "a")
    run(make(tmp_path / "b", source), 2, Quiet())
    assert content(tmp_path / "b") == expected
    # What a kill leaves: no index, shards that are missing, half written or without a sidecar.
    (tmp_path / "b" / "index.json").unlink()
    (tmp_path / "b" / "held_out" / "index.json").unlink()
    (tmp_path / "b" / file_name(1)).unlink()
    os.truncate(tmp_path / "b" / file_name(2), 8)
    (tmp_path / "b" / "shards" / "00003.json").unlink()
    (tmp_path / "b" / "shards" / "00004.json").write_text('{"tokens": 3')
    (tmp_path / "b" / "held_out" / ".00005.bin.77.part").write_bytes(b"unfinished")
    job = make(tmp_path / "b", source)
    assert sorted(set(range(len(job.shards))) - set(job.state())) == [1, 2, 3, 4]
    untouched = (tmp_path / "b" / file_name(0)).stat().st_mtime_ns
    progress = Quiet()
    run(job, 0, progress)
    assert content(tmp_path / "b") == expected
    assert (tmp_path / "b" / file_name(0)).stat().st_mtime_ns == untouched
    assert 0 < progress.done < progress.total == progress.done + progress.read


def test_a_finished_folder_is_left_alone(tmp_path, source):
    counts = run(make(tmp_path / "out", source), 0, Quiet())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    progress = Quiet()
    assert run(make(tmp_path / "out", source), 2, progress) == counts
    assert progress.total is None
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


@pytest.mark.parametrize(("most", "workers"), [(1, 0), (500, 0), (500, 2), (1000, 0)])
def test_max_tokens_ends_with_a_document(tmp_path, source, most, workers):
    counts = run(make(tmp_path / "out", source, max_tokens=most), workers, Quiet())
    everything = tokens_of(sides(TEXTS)[0])
    end = everything.index(EOS, most - 1) + 1
    assert stored(tmp_path / "out") == everything[:end]
    assert counts.tokens == end >= most
    assert counts.documents == everything[:end].count(EOS)
    names = {path.name for path in (tmp_path / "out").glob("*.bin")}
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert names == {file["name"] for file in index["files"]}
    # killed after the cut and before the index: made again, with the same result
    expected = content(tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    run(make(tmp_path / "out", source, max_tokens=most), 0, Quiet())
    assert content(tmp_path / "out") == expected


def test_files_of_the_hub_are_tried_again(tmp_path, source, hub, monkeypatch):
    run(make(tmp_path / "here", source), 0, Quiet())
    for path in source.iterdir():
        hub.pipe(f"/datasets/owner/name/{path.name}", path.read_bytes())
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.fails += [OSError("429 not so fast"), RuntimeError("connection\nlost")]
    progress = Quiet()
    job = make(tmp_path / "remote", "hf://datasets/owner/name")
    counts = run(job, 0, progress)
    assert waits == [10, 60]
    assert stored(tmp_path / "remote") == stored(tmp_path / "here")
    assert progress.made == counts.tokens + counts.held_out_tokens
    # It gives up in the end, with one line, and the same command goes on.
    hub.fails += [OSError("connection lost")] * 4
    job = make(tmp_path / "again", "hf://datasets/owner/name")
    with pytest.raises(InputError, match=r"^hf://.*a\.jsonl: not readable \(connection lost\)$"):
        run(job, 0, Quiet())
    assert waits == [10, 60, 10, 60, 300]
    run(job, 0, Quiet())
    assert content(tmp_path / "again" / "held_out") == content(tmp_path / "remote" / "held_out")


def test_held_out_is_a_function_of_the_document():
    texts = [f"document {n}" for n in range(4000)]
    for share in (0.0, 0.01, 0.1, 0.5):
        found = sum(is_held_out(text, share) for text in texts)
        deviation = (len(texts) * share * (1 - share)) ** 0.5
        assert abs(found - share * len(texts)) <= 4 * deviation
    # A larger share holds the smaller one, so that what was once held out stays it.
    assert {t for t in texts if is_held_out(t, 0.01)} < {t for t in texts if is_held_out(t, 0.1)}
    # For all time: a model that trained on one side is evaluated on the other.
    assert [n for n in range(2000) if is_held_out(texts[n], 0.003)] == [210, 339, 358, 1423]


def test_copies_of_a_document_stay_on_one_side(tmp_path):
    texts = documents(30) * 3
    source = corpora.write_json_lines(tmp_path / "a.jsonl", texts)
    run(make_job(tmp_path / "out", source), 0, Quiet())

    def cut(folder):
        tokens = np.asarray(stored(folder))
        return {tuple(part) for part in np.split(tokens, np.flatnonzero(tokens == EOS) + 1)} - {()}

    kept, held_out = cut(tmp_path / "out"), cut(tmp_path / "out" / "held_out")
    assert kept and held_out and not kept & held_out


def test_nothing_held_out_leaves_no_folder_of_it(tmp_path, source):
    counts = run(make(tmp_path / "out", source, held_out=0.0), 0, Quiet())
    assert counts.held_out_documents == 0 and not (tmp_path / "out" / "held_out").exists()
    assert run(make(tmp_path / "out", source, held_out=0.0), 0, Quiet()) == counts
    assert stored(tmp_path / "out") == tokens_of(TEXTS)


def test_other_inputs_or_settings_are_refused(tmp_path, source):
    run(make(tmp_path / "out", source), 0, Quiet())
    for fields, message in (
        ({"held_out": 0.3}, r"was begun with held_out=0\.2, not 0\.3"),
        ({"eos_id": 4}, "was begun with eos_id=3, not 4"),
        ({"field": "body"}, "was begun with field='text', not 'body'"),
        ({"max_tokens": 7}, "was begun with max_tokens=None, not 7"),
        ({"shard_bytes": 900}, "was begun from other inputs"),
    ):
        with pytest.raises(InputError, match=message):
            run(make(tmp_path / "out", source, **fields), 0, Quiet())
    # A file that moved is the same file; a changed one is not.
    source.rename(tmp_path / "moved")
    make(tmp_path / "out", tmp_path / "moved").state()
    with (tmp_path / "moved" / "c.txt").open("a") as file:
        file.write("a")
    with pytest.raises(InputError, match="was begun from other inputs"):
        make(tmp_path / "out", tmp_path / "moved").state()
    (tmp_path / "moved" / "c.txt").unlink()
    with pytest.raises(InputError, match=r"other inputs, such as .*\.(jsonl|txt)"):
        make(tmp_path / "out", tmp_path / "moved").state()
    other = corpora.tokenizer(special=False)
    other.save(str(tmp_path / "tokenizer.json"))
    corpora.tokenizer().save(str(tmp_path / "kept.json"))
    cached_tokenizer.cache_clear()  # one process reads one tokenizer once
    with pytest.raises(InputError, match="was begun with another tokenizer"):
        make(tmp_path / "out", tmp_path / "moved").state()
    cached_tokenizer.cache_clear()


def test_a_folder_with_something_else_is_refused(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all of it")
    with pytest.raises(InputError, match="exists and is not empty"):
        run(make(tmp_path / "out", source), 0, Quiet())
    assert content(tmp_path / "out") == {"thesis.tex": b"all of it"}


def test_two_at_once_are_kept_apart(tmp_path, source):
    job = make(tmp_path / "out", source)
    job.folder.mkdir()
    descriptor = os.open(job.folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match="another process is at work"):
            run(job, 0, Quiet())
    finally:
        os.close(descriptor)
    (job.folder / "held_out").rmdir()
    (job.folder / "shards").rmdir()
    run(job, 0, Quiet())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_line_ends_it_and_what_is_finished_is_kept(tmp_path, source, workers):
    path = source / "a.jsonl"
    lines = path.read_text().splitlines()
    lines[90] = "{" + " " * (len(lines[90]) - 1)
    path.write_text("\n".join(lines))
    job = make(tmp_path / "out", source)
    with pytest.raises(InputError, match=r"a\.jsonl:91: not a line of JSON"):
        run(job, workers, Quiet())
    assert 0 in job.state() and not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").rglob("*.part"))


def test_no_text_at_all(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    with pytest.raises(InputError, match="hold no text"):
        run(make_job(tmp_path / "out", tmp_path / "a.jsonl"), 0, Quiet())
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0: must be above 0"),
        ({"held_out": 1.0}, r"held_out=1\.0: must be at least 0 and below 1"),
        ({"eos_id": 9}, "eos_id=9: the tokenizer has 9"),
    ],
)
def test_bad_settings(tmp_path, source, fields, message):
    with pytest.raises(InputError, match=message):
        make_job(tmp_path / "out", source, **fields)


def test_progress_tells_how_far_it_is():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = 0.0
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        now = 100.0
        progress = Progress(stream, lambda: now)  # noqa: B023 - called within the loop
        progress.begin(total=4_000_000_000, done=1_000_000_000)
        for _ in range(4):
            now += 20.0
            progress.tokens(10_000_000)
        progress.shard(500_000_000)
        now += 20.0
        progress.tokens(10_000_000)
        progress.close()
    assert plain.getvalue().splitlines() == [
        "read 1.00GB of 4.00GB, 20.0M tokens, 500k tokens/s",
        "read 1.00GB of 4.00GB, 40.0M tokens, 500k tokens/s",
        "read 1.50GB of 4.00GB, 50.0M tokens, 500k tokens/s",
    ]
    assert "50.0M tokens, 500k tokens/s" in terminal.getvalue()
    assert "1.50G/4.00G" in terminal.getvalue()
