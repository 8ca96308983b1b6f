"""Runs in a bucket: logs, checkpoints, going on, and a bucket that refuses."""

import json
import os
import subprocess
import sys

import pytest

from ratjax.model.checkpoint import load_model
from tests.faults.bucket import Bucket
from tests.faults.conftest import ROOT

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow

WORKDIR = "gs://bucket/runs/one"


@pytest.fixture
def bucket():
    bucket = Bucket()
    yield bucket
    bucket.close()


def train(bucket, config, *more):
    return subprocess.run(
        [sys.executable, "-m", "launch.train", config, f"--workdir={WORKDIR}", *more],
        env={**os.environ, **bucket.environment, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def kept(bucket):
    return {int(name.split("/")[3]) for name in bucket.objects if "/checkpoints/" in name}


def test_a_run_in_a_bucket(bucket, victim, undisturbed, monkeypatch):
    config = victim("unused").arguments[0]
    flat = ("--config.train.keep=2", "--config.train.steps=30")
    done = train(bucket, config, *flat, "--config.train.spike=0", "--config.train.profile=2:2")
    assert done.returncode == 0, done.stderr
    assert kept(bucket) == {27, 30}
    log = bucket.objects["runs/one/metrics.jsonl"][1].decode().splitlines()
    losses = [line["loss"] for line in undisturbed.losses()]
    assert [json.loads(line)["loss"] for line in log] == losses
    names = "\n".join(bucket.objects)
    assert "runs/one/model.json" in names and "runs/one/tensorboard/events" in names
    assert ".xplane.pb" in names

    # As a kill in a save leaves it: objects under the final name, without the last one.
    for name in [name for name in bucket.objects if name.endswith("/30/commit_success.txt")]:
        del bucket.objects[name]
    done = train(bucket, config, *flat)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 27 of 30" in done.stdout
    log = bucket.objects["runs/one/metrics.jsonl"][1].decode().splitlines()
    assert [json.loads(line)["loss"] for line in log] == losses

    bucket.refuses = True
    before = dict(bucket.objects)
    done = train(bucket, config, "--config.train.steps=40")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: at step") and "the bucket does not answer, or refuses" in line
    assert "Traceback" not in done.stderr
    assert bucket.objects == before

    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    assert load_model(WORKDIR).config == load_model(undisturbed.workdir).config
