"""The JobSet beside what it is made from; the wrapper that makes an interruption a failure."""

import json
import signal
import subprocess
import sys

import pytest

from launch.pods import restartable
from tests.pods.conftest import POD, TRAIN, WHERE

IMAGE = "us-docker.pkg.dev/lab/images/ratjax:1"


def manifest(pods, *flags):
    status, out, err = pods("manifest", *flags, f"--image={IMAGE}", "--", *TRAIN)
    assert (status, err) == (0, [])
    return json.loads("\n".join(out))


def parts(made):
    (job,) = made["spec"]["replicatedJobs"]
    host = job["template"]["spec"]["template"]["spec"]
    return job, host, host["containers"][0]


def test_a_job_a_slice_and_a_pod_a_host(pods):
    job, host, container = parts(manifest(pods, *WHERE, "--topology=v6e-256", "--slices=2"))
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 64 and spec["backoffLimit"] == 0
    selector = host["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    assert selector["cloud.google.com/gke-tpu-topology"] == "16x16"
    assert "cloud.google.com/gke-spot" not in selector
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][-len(TRAIN) :] == list(TRAIN)
    flags = {setting["name"]: setting["value"] for setting in container["env"]}["LIBTPU_INIT_ARGS"]
    assert "--megascale_graph_hang_threshold=10m" in flags


def test_spot_restarts_and_grace(pods):
    made = manifest(pods, *POD, "--spot", "--max_restarts=7", "--grace=25")
    _, host, _ = parts(made)
    assert host["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {t["key"] for t in host["tolerations"]} == {
        "google.com/tpu",
        "cloud.google.com/gke-spot",
    }
    assert made["spec"]["failurePolicy"] == {"maxRestarts": 7}
    assert host["terminationGracePeriodSeconds"] == 25


def wrapped(text):
    line = [sys.executable, "-S", restartable.__file__, sys.executable, "-S", "-c", text]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("print('trained 3 steps')", 0),
        ("print('runs/a: stopped by a signal; the same command resumes it')", 75),
        ("print('stopped by a signal'); raise SystemExit(1)", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        # said long ago, about something else
        ("print('stopped by a signal'); print('step\\n' * 30)", 0),
    ],
)
def test_status_of_an_interrupted_run(text, status):
    child = wrapped(text)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == status
    assert out or status == 137


def test_signals_reach_the_program():
    child = wrapped(
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (print('stopped by a signal'), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (75, "stopped by a signal\n")
