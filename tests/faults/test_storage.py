"""Storage that fills up: one line, status 1, and the last good checkpoint to go on from."""

import os
import resource
import shlex
import shutil
import subprocess
import sys

import pytest

from ratjax.model.checkpoint import steps
from tests.faults.conftest import EVERY, ROOT, assert_same


def errors(run):
    return [line for line in run.said().splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_a_save_that_cannot_be_written_leaves_the_one_before(victim, undisturbed):
    """Writes fail in the middle of the run, in TensorStore's own threads."""
    run = victim("full")
    run.start("--config.train.keep=1")
    assert run.until(lambda: steps(run.workdir))
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    assert run.finish() == 1, run.said()
    assert len(errors(run)) == 1, run.said()
    (line,) = errors(run)
    assert "the disk is full" in line and "the same command resumes from it" in line
    assert "Traceback" not in run.said()
    (kept,) = steps(run.workdir)
    assert kept % EVERY == 0
    run.start()
    assert run.finish() == 0, run.said()
    assert f"resuming from step {kept}" in run.said()
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_a_disk_that_is_really_full(victim, undisturbed, tmp_path):
    """A file system of half a megabyte, in a namespace of its own."""
    run = victim("tmpfs")
    mount = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unprivileged user namespaces")
    keep = tmp_path / "kept"
    command = [sys.executable, "-m", "launch.train", run.arguments[0], f"--workdir={tmp_path}/run"]
    script = (
        f"mkdir -p {tmp_path}/run {keep} && mount -t tmpfs -o size=300k none {tmp_path}/run && "
        f"{shlex.join([*command, '--config.train.keep=8'])}; status=$?; "
        f"rm -rf {tmp_path}/run/checkpoints/*tmp*; cp -r {tmp_path}/run/. {keep}; exit $status"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*mount, "sh", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: at step") and "the disk is full" in line
    assert "No space left on device" in line and "Traceback" not in done.stderr
    # What was there is whole: the run goes on from it, where there is room.
    saved = steps(keep)
    assert saved
    run.workdir.parent.joinpath("tmpfs").mkdir()
    shutil.copytree(keep, run.workdir, dirs_exist_ok=True)
    run.start()
    assert run.finish() == 0, run.said()
    assert f"resuming from step {saved[-1]}" in run.said() and "skipped" not in run.said()
    assert_same(run, undisturbed)
