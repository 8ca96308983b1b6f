"""The script for Slurm: what it says, and what it does with a made-up `srun`."""

import os
import shlex
import subprocess
import sys

import pytest
from absl import flags

from launch import command, slurm

TRAIN = (
    "python", "-m", "launch.train", "--config=experiments/olmo2_1b_memory.py",
    "--workdir=/shared/a run", "--coordinator=auto",
)  # fmt: skip
SCRIPT = """\
#!/usr/bin/env bash
# Written by launch.slurm.
#SBATCH --job-name=ratjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=1-00:00:00
#SBATCH --partition=gpu
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
:
export XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true
LOG="$SLURM_JOB_NAME-$SLURM_JOB_ID.turn-${SLURM_RESTART_COUNT:-0}.log"
# One that fails takes the others with it: they would wait for it.
srun --kill-on-bad-exit=1 --label --output="$LOG" python -m launch.train \
--config=experiments/olmo2_1b_memory.py '--workdir=/shared/a run' --coordinator=auto
STATUS=$?
tail -n 20 "$LOG"
# launch.train ends with 0 after SIGTERM too; then it says so.
if [ $STATUS = 0 ] && tail -n 200 "$LOG" | grep -c 'stopped by a signal' >/dev/null
then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $STATUS
"""


@pytest.fixture
def write(monkeypatch, capsys):
    """Runs a command line: (exit status, stdout, lines of stderr)."""

    def run(*arguments):
        monkeypatch.setattr(command, "FLAGS", flags.FlagValues())
        own, program = slurm.split(["launch.slurm", *arguments])
        monkeypatch.setattr(sys, "argv", own)
        slurm.define()
        try:
            status = command.guarded(lambda: slurm.act(program), command.parse(own))
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err.splitlines()

    return run


def test_the_script(write, tmp_path):
    settings = ("--nodes=4", "--partition=gpu", "--time=1-00:00:00", "--setup=:")
    status, out, err = write(*settings, "--", *TRAIN)
    assert (status, out, err) == (0, SCRIPT, [])
    path = tmp_path / "a job.sbatch"
    status, out, _ = write(*settings, f"--output={path}", "--", *TRAIN)
    assert (status, path.read_text()) == (0, SCRIPT)
    assert out.endswith(f"submit it with `sbatch {shlex.quote(str(path))}`\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "nothing to run; end the line with -- python -m launch.train"),
        (("--time=soon", "--", *TRAIN), "--time=soon: must be written as Slurm does"),
        (("--job=a b", "--", *TRAIN), "--job=a b: must be letters"),
        (("--account=a b", "--", *TRAIN), "--account=a b: must be a name"),
        (("--nodes=0", "--", *TRAIN), "--nodes=0: 0 is not a positive integer"),
        (("--", *TRAIN[:-1]), "launch.train in 8 processes needs --coordinator=auto"),
    ],
)
def test_refusals_are_one_line(write, line, message):
    status, out, err = write(*line)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ") and message in err[0]


def test_one_process_needs_no_coordinator(write):
    assert write("--gpus_per_node=1", "--", *TRAIN[:-1])[0] == 0


# What a turn prints and ends with; whether the job goes into the queue again.
TURNS = [
    ("0: /shared/run: trained 3 steps", 0, False),
    ("0: /shared/run: stopped by a signal; the same command resumes it", 0, True),
    ("0: error: loss is nan at step 3", 1, False),
    ("0: /shared/run: stopped by a signal; the same command resumes it", 9, False),
]


@pytest.mark.parametrize(("said", "code", "again"), TURNS)
def test_a_job_that_was_stopped_queues_again(write, tmp_path, said, code, again):
    _, text, _ = write("--setup=:", "--", *TRAIN)
    for name, tool in {
        "srun": 'for a in "$@"; do case "$a" in --output=*) log=${a#*=} ;; esac; done\n'
        'echo "$SAID" > "$log"; printf "%s\\n" "$@" > given; exit $CODE\n',
        "scontrol": 'echo "$@" > requeued\n',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{tool}")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NAME": "ratjax",
        "SLURM_JOB_ID": "7",
        "SAID": said,
        "CODE": str(code),
    }
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, f"{said}\n"), done.stderr
    given = (tmp_path / "given").read_text().splitlines()
    assert given[-len(TRAIN) :] == list(TRAIN)
    requeued = tmp_path / "requeued"
    assert requeued.exists() == again
    assert not again or requeued.read_text() == "requeue 7\n"
