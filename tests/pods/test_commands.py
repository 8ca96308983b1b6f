"""Every command, as a dry run prints it, against what is on file; and what is refused.

`WRITE_GOLDEN=1 pytest tests/pods/test_commands.py` writes the files anew.
"""

import functools
import json
import os
import pathlib
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.pods.conftest import POD, TRAIN, WHERE

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROOT = pathlib.Path(__file__).parents[2]
IMAGE = "us-docker.pkg.dev/lab/images/ratjax:1"
SLICES = (*WHERE, "--topology=v6e-256", "--slices=2")
FETCH = "--fetch=gs://bucket/tokens=data/fineweb-edu"
LINES = {
    "create": ("create", *POD, "--spot"),
    "create_slices": (
        "create", *SLICES, "--reserved", "--network=wide", "--service_account=a@b.c", "--tunnel",
    ),
    "setup": ("setup", *POD, "--python=3.12", FETCH),
    "setup_image": ("setup", *POD, f"--image={IMAGE}"),
    "run": ("run", *POD, "--", *TRAIN),
    "run_image_slices": ("run", *SLICES, f"--image={IMAGE}", "--", *TRAIN),
    "babysit": ("run", "--babysit", *POD, "--spot", "--python=3.12", "--", *TRAIN),
    "resume": ("resume", *POD, "--python=3.12", "--", *TRAIN),
    "tail": ("tail", *WHERE),
    "status": ("status", *POD),
    "stop": ("stop", *WHERE, "--grace=60", "--tunnel"),
    "delete": ("delete", *WHERE),
    "list": ("list", "--zone=us-east5-a", "--project=lab"),
    "manifest": ("manifest", *SLICES, "--spot", f"--image={IMAGE}", "--", *TRAIN),
    "xpk": ("xpk", *POD, "--cluster=big", f"--image={IMAGE}", "--", *TRAIN),
    "flags": ("flags", "--topology=v5e-64"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_what_a_dry_run_prints(pods, name):
    line = list(LINES[name])
    at = line.index("--") if "--" in line else len(line)
    status, out, err = pods(*line[:at], "--dry_run", *line[at:])
    assert status == 0
    assert err == (
        ["warning: changes that are not committed are not sent to the pod"]
        if name in ("setup", "babysit", "resume")
        else []
    )
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text("\n".join(out) + "\n")
    assert "\n".join(out) + "\n" == path.read_text()
    if name not in ("manifest", "flags"):
        commands = [text for text in out[:-1] if not text.startswith("# ")]
        assert json.loads(out[-1])["commands"] == len(commands) > 0


@functools.cache
def sdk_tables():
    """What Google's command line itself knows of its commands and their flags."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    root = pathlib.Path(gcloud).resolve().parents[1]
    table = root / "data" / "cli" / "gcloud_completions.py"
    return runpy.run_path(str(table))["STATIC_COMPLETION_CLI_TREE"] if table.exists() else None


def gcloud_lines(text):
    """The gcloud commands in what a dry run printed, or in a page's code."""
    return [line for line in text.splitlines() if line.lstrip("$ ").startswith("gcloud ")]


def unknown_flags(tree, words):
    """The flags of a command that are in no table; `words` begin after "gcloud"."""
    known = set(tree["flags"])
    while words and not words[0].startswith("-") and words[0] in tree.get("commands", {}):
        tree = tree["commands"][words[0]]
        words = words[1:]
    assert not tree.get("commands"), f"no such command: {words[:2]}"
    known |= set(tree["flags"])
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    return given - known


@pytest.mark.parametrize("source", [*sorted(GOLDEN.glob("*.txt")), ROOT / "docs" / "launch.md"])
def test_google_knows_every_command_and_flag(source):
    tree = sdk_tables()
    if tree is None:
        pytest.skip("needs the Google Cloud SDK")
    text = source.read_text().replace("\\\n", " ")
    for line in gcloud_lines(text):
        assert unknown_flags(tree, shlex.split(line.lstrip("$ "))[1:]) == set(), line


def test_the_tables_are_read_right():
    tree = sdk_tables()
    if tree is None:
        pytest.skip("needs the Google Cloud SDK")
    line = shlex.split("compute tpus queued-resources delete a --zone=b --fource")
    assert unknown_flags(tree, line) == {"--fource"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "say what to do: launch.pods create|setup|"),
        (("crate", *POD), "crate: no such verb; did you mean create?"),
        (("create", *WHERE), "--topology is required"),
        (("create", *WHERE, "--topology=v5p:4x4"), "v5p has 3 axes; write one as v5p:4x4x4"),
        (("create", *WHERE, "--topology=v5lite-64"), "did you mean v5litepod"),
        (
            ("create", *WHERE, "--topology=v6e-60"),
            "--topology=v6e-60: no such slice; v6e-32 or v6e-64",
        ),
        (
            ("create", *WHERE, "--topology=v5e:3x3"),
            "not a shape that is rented; v5e:2x4 or v5e:4x4",
        ),
        (("create", *WHERE, "--topology=v5p:2x2x16"), "not a shape that is rented; v5p-128 is v5p"),
        (("create", *WHERE, "--topology=v6e:3x5"), "--topology=v6e:3x5: not a shape"),
        (("create", *POD, "--pod=Demo"), "--pod=Demo: must be at most 40 small letters"),
        (("create", *POD, "--zone=us-east5"), "--zone=us-east5: must be a zone such as"),
        (("create", *POD, "--spot", "--reserved"), "--spot --reserved: choose one"),
        (("create", *POD, "--slices=0"), "--slices=0: 0 is not a positive integer"),
        (("run", *POD), "nothing to run; end the line with -- python -m launch.train"),
        (("run", *POD, "--", *TRAIN[:-1]), "on 16 hosts needs --coordinator=auto"),
        (
            ("run", *POD, "--", *TRAIN, "--workdir=runs/a"),
            "--workdir=runs/a: must begin with gs://",
        ),
        (("run", *POD, "--", *TRAIN[:4]), "--workdir=None: must begin with gs://"),
        (("run", *POD, "--logs=logs", "--", *TRAIN), "--logs=logs: must begin with gs://"),
        (("setup", *POD, "--fetch=gs://b/x"), "--fetch=gs://b/x: must read gs://bucket/"),
        (("setup", *POD, "--fetch=gs://b/x=data/../.."), "must read gs://bucket/folder=data"),
        (("setup", *POD, "--python=2.7"), "--python=2.7: must be a release such as 3.12"),
        (("manifest", *POD, "--", *TRAIN), "--image is required: GKE runs containers"),
        (("manifest", *POD, "--image=a.b/c", "--", *TRAIN), "--image=a.b/c: needs a tag"),
        (("xpk", *POD, "--image=a:1", "--", *TRAIN), "--cluster=: must name the cluster"),
        (("tail", "--pod=demo", "--zone=us-east5-a"), "--project is required"),
        (("create", *POD, "--spott"), "Unknown command line flag 'spott'"),
    ],
)
def test_refusals_are_one_line(pods, line, message):
    status, out, err = pods(*line)
    assert (status, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("error: ") and message in err[0]


def test_without_googles_command_line(pods, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = pods("delete", *WHERE)
    assert status == 2
    assert err == [
        "error: gcloud: not found; install the Google Cloud CLI "
        "(cloud.google.com/sdk/docs/install), then `gcloud auth login`"
    ]


def test_what_google_refuses_is_one_line(pods, path):
    path("gcloud", "#!/bin/sh\necho 'ERROR: (gcloud.x) RESOURCE_EXHAUSTED: no quota' >&2\nexit 1\n")
    status, _, err = pods("create", *POD)
    assert status == 1
    assert err == [
        "error: gcloud compute tpus queued-resources create ... ended with 1: "
        "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: no quota"
    ]


def test_a_program_arrives_as_it_was_written(pods):
    """Through gcloud, which hands `--command` on as it is, and the shell of the host."""
    odd = ("python", "-c", "print('a  b', \"$HOME\", `x`)\n", "--x=*", "")
    _, out, _ = pods("run", *POD, "--dry_run", "--", *odd)
    line = "\n".join(out[:-1])
    remote = next(word for word in shlex.split(line) if word.startswith("--command="))
    given = subprocess.run(
        ["bash", "-c", 'bash() { shift 2; printf "%s\\0" "$@"; }; ' + remote.split("=", 1)[1]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    assert tuple(given[given.index("--") + 1 :]) == odd


@pytest.mark.slow
def test_the_module_runs():
    line = [sys.executable, "-m", "launch.pods", "list", "--zone=us-east5-a", "--project=p"]
    done = subprocess.run([*line, "--dry_run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gcloud compute tpus queued-resources list --zone=us-east5-a")
