import errno
import json
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags

from data import corpora
from data.corpora import EOS, content, documents, stored, tokenizer, tokens_of, write_json_lines
from launch import tokenize
from ratjax.data import open_source
from ratjax.data.corpus.shard import is_held_out
from ratjax.data.encoding import TokenWriter

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = documents(60)


@pytest.fixture
def corpus(tmp_path):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    write_json_lines(tmp_path / "texts" / "a.jsonl", TEXTS[:40], "body")
    write_json_lines(tmp_path / "texts" / "b.jsonl.gz", TEXTS[40:], "body")
    return tmp_path


@pytest.fixture
def command(launch, corpus, monkeypatch):
    """Runs the command in the corpus' folder, in this process."""
    monkeypatch.chdir(corpus)
    return lambda *arguments: launch(
        tokenize.main, tokenize.define, "--tokenizer=tokenizer.json", *arguments
    )


NAMES = ("--source=texts", "--target=out")
RECIPE = ("--field=body", "--held_out=0.2", "--shard_megabytes=6e-4", "--workers=0")
TEXT = (*NAMES, *RECIPE)


def test_text_becomes_a_stream(command, corpus):
    status, out, err = command(*TEXT)
    kept = [text for text in TEXTS if not is_held_out(text, 0.2)]
    assert status == 0
    assert out[0].startswith("2 files, ") and out[0].endswith("followed by '<eos>' (3)")
    counted = f"{len(tokens_of(kept)):,} tokens of {len(kept)} documents"
    assert out[1].startswith(f"out: {counted}; held_out: ")
    assert len(err) == 1 and "tokens/s" in err[0]
    assert stored(corpus / "out") == tokens_of(kept)
    # the contract's names and the other ones are the same flags
    status, *_ = command("--input=texts", "--output=again", *RECIPE)
    assert status == 0 and content(corpus / "again") == content(corpus / "out")
    status, out, err = command(*TEXT)
    assert (status, err) == (0, []) and counted in out[-1]


def test_dry_run_writes_nothing(command, corpus):
    before = content(corpus)
    status, out, err = command(*TEXT, "--dry_run")
    assert (status, err) == (0, [])
    size = sum(path.stat().st_size for path in (corpus / "texts").iterdir())
    summary = json.loads(out[-1])
    shards = summary.pop("shards")
    assert summary == {"files": 2, "bytes": size, "finished": 0} and shards > 3
    assert content(corpus) == before
    status, out, err = command("--source=elsewhere", "--target=out", "--dry_run")
    assert (status, len(err)) == (0, 1) and err[0].startswith("warning: elsewhere: no such file")
    assert json.loads(out[-1]) == {"files": None}


def test_a_full_disk_is_one_line_and_can_be_gone_on_with(command, corpus, monkeypatch):
    def full(self, ids):
        if len(list((corpus / "out" / "shards").iterdir())) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, ids)

    add = TokenWriter.add
    with monkeypatch.context() as patched:
        patched.setattr(TokenWriter, "add", full)
        status, _, err = command(*TEXT)
    assert (status, len(err)) == (2, 2)  # how far it came, and
    assert err[1] == "error: out: No space left on device; what is finished is kept"
    assert not list((corpus / "out").rglob("*.part"))
    status, out, _ = command(*TEXT)
    assert status == 0 and "of which 2 are finished" in out[0]


def test_published_streams_are_indexed(command, corpus):
    values = np.random.default_rng(0).integers(0, len(corpora.WORDS), 400).astype("<u4")
    (corpus / "olmo").mkdir()
    values.tofile(corpus / "olmo" / "part-0.npy")
    arguments = ["--published=olmo", "--dtype=uint32", f"--eos_id={EOS}"]
    status, out, err = command(*arguments, "--dry_run")
    assert (status, err, json.loads(out[-1])) == (0, [], {"files": 1, "tokens": 400})
    assert not (corpus / "olmo" / "index.json").exists()
    status, out, err = command(*arguments)
    assert (status, out, err) == (0, ["1 files of uint32, 400 tokens"], [])
    windows = open_source("olmo", 16).read(np.arange(24))
    assert np.array_equal(windows.tokens.ravel(), values[:384])
    assert np.array_equal(windows.mask, windows.tokens != EOS)
    for more, message in (
        ((), "olmo/index.json: exists"),
        (("--max_tokens=9",), "max_tokens=9: not used with --published"),
        (("--source=texts",), "give either --source or --published"),
    ):
        status, out, err = command(*arguments, *more)
        assert (status, out, len(err)) == (2, [], 1) and message in err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=out"], "source=[], published=[]: give either"),
        (["--source=texts"], "target=None: give --target"),
        (["--source=nothing", "--target=out"], "nothing: no such file"),
        ([*NAMES, "--workers=0"], "texts/a.jsonl:1: has no field 'text'; known: body, id"),
        ([*TEXT, "--eos=<end>"], "eos='<end>': not in the tokenizer; did you mean <eos>"),
        ([*TEXT, "--tokenizer=no.json"], "tokenizer='no.json': no such file"),
        ([*TEXT, "--held_out=1"], "held_out=1.0: must be at least 0 and below 1"),
        ([*TEXT, "--max_tokens=0"], "max_tokens=0: must be above 0"),
        ([*TEXT, "--dtype=uint16"], "dtype='uint16': only used with --published"),
        ([*TEXT, "--workers=-1"], "flag --workers=-1"),
    ],
)
def test_bad_command_lines_are_one_line(command, corpus, arguments, message):
    status, _, err = command(*arguments)
    assert status == 2 and len(err) == 1, err
    assert err[0].startswith("error: ") and message in err[0]
    assert not (corpus / "out" / "index.json").exists()


def test_the_documentation_names_flags_that_exist(monkeypatch):
    monkeypatch.setattr(tokenize.command, "FLAGS", flags.FlagValues())
    tokenize.define()
    text = (ROOT / "docs" / "data.md").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if "-m launch.tokenize " in line]
    assert len(commands) == 3
    for words in (*commands, tokenize.__doc__.replace("\\", "").split()):
        used = [word for word in words if word.startswith("--")]
        assert used and tokenize.command.FLAGS(["", *used]) == [""]
    named = set(re.findall(r"`--(\w+)", text))
    assert len(named) > 8 and named <= set(tokenize.command.FLAGS)


STARTED = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """What a failing test leaves would be the failure of a later one."""
    yield
    while STARTED:
        with STARTED.pop() as child:
            child.kill()


def start(folder, *arguments, **options):
    """The command in a process of its own, with enough small shards to be stopped between."""
    flags = ("--tokenizer=tokenizer.json", *NAMES, *RECIPE[:2], "--shard_megabytes=2e-3")
    child = subprocess.Popen(
        [sys.executable, "-m", "launch.tokenize", *flags, "--workers=2", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    STARTED.append(child)
    return child


@pytest.fixture
def large(corpus):
    """Some hundred shards; and what they come to, made in one go."""
    for number in range(4):
        texts = documents(1000, seed=number)
        write_json_lines(corpus / "texts" / f"{number}.jsonl", texts, "body")
    return corpus


def expected(large, command):
    status, *_ = command(
        "--source=texts", "--target=whole", *RECIPE[:2], "--shard_megabytes=2e-3", "--workers=0"
    )
    assert status == 0
    return content(large / "whole")


def wait_for_shards(folder, count, child):
    while child.poll() is None and len(list((folder / "shards").glob("0*.json"))) < count:
        time.sleep(0.001)


def children_of(process):
    listed = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in listed.split()]


def running(process):
    try:  # a zombie has ended
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def kill(folder, shards, delay=0.0):
    """Kills the command when it has made so many shards; whether it was killed at work."""
    before = len(list((folder / "out" / "shards").glob("0*.json")))
    child = start(folder)
    wait_for_shards(folder / "out", before + shards, child)
    time.sleep(delay)
    workers = children_of(child.pid)
    child.kill()
    child.communicate()
    if child.returncode == 0:
        return False
    assert child.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(map(running, workers)):  # no worker outlives it, to write into a later run's folder
        assert time.monotonic() < deadline, "workers were left"
        time.sleep(0.01)
    assert len(workers) >= 2
    return not (folder / "out" / "index.json").exists()


def test_a_kill_costs_only_what_was_not_finished(large, command):
    assert kill(large, 20)
    finished = {p: p.stat().st_mtime_ns for p in (large / "out" / "shards").glob("0*.json")}
    status, out, _ = command(*NAMES, *RECIPE[:2], "--shard_megabytes=2e-3", "--workers=0")
    assert status == 0 and f"of which {len(finished)} are finished" in out[0]
    assert content(large / "out") == expected(large, command)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


@pytest.mark.slow
def test_eight_kills(large, command):
    draw, whole = random.Random(0), expected(large, command)
    kills = sum(kill(large, draw.randrange(1, 10), draw.uniform(0, 0.02)) for _ in range(8))
    child = start(large)
    assert child.wait(300) == 0, child.stderr.read()
    assert content(large / "out") == whole
    assert kills == 8


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_is_one_line_and_can_be_gone_on_with(large, command, sign):
    child = start(large, start_new_session=True)
    wait_for_shards(large / "out", 20, child)
    os.killpg(child.pid, sign) if sign == signal.SIGINT else child.send_signal(sign)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in errors
    *progress, last = errors.splitlines()
    assert last.startswith("error: interrupted; the same command goes on")
    assert all(line.startswith("read ") for line in progress)
    assert not list((large / "out").rglob("*.part"))
    child = start(large)
    assert child.wait(300) == 0
    assert content(large / "out") == expected(large, command)
