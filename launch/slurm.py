"""Writes a Slurm script that trains on several GPU machines, and goes on where it was stopped.

  python -m launch.slurm --nodes=4 --gpus_per_node=8 --time=24:00:00 --output=train.sbatch \\
      -- python -m launch.train --config=experiments/olmo2_1b_memory.py --workdir=/shared/run \\
      --coordinator=auto
  sbatch train.sbatch

One process a GPU: Slurm tells each of them who it is, and JAX reads that (`--coordinator=auto`).
Before the time is up, or when a job with higher priority takes the machines, every process gets
SIGTERM, saves and ends; the job then puts itself into the queue again. docs/launch.md has the rest.
"""

import pathlib
import re
import shlex
import sys

from absl import app, flags

from launch import command
from launch.pods.pod import flag_of
from launch.pods.restartable import STOPPED
from launch.pods.xla_flags import GPU_FLAGS, joined
from ratjax.errors import InputError
from ratjax.files import write_file


def define() -> None:
    """Defines the flags."""
    own, text, number = command.FLAGS, flags.DEFINE_string, flags.DEFINE_integer
    text("job", "ratjax", "Name of the job.", own)
    number("nodes", 1, "Machines.", 1, flag_values=own)
    number("gpus_per_node", 8, "GPUs of each; one process each.", 1, flag_values=own)
    number("cpus_per_gpu", 8, "Processor cores of each process.", 1, flag_values=own)
    text("time", "24:00:00", "Limit of one turn, as Slurm writes it.", own)
    number("grace", 300, "Seconds between SIGTERM and the limit.", 30, flag_values=own)
    text("partition", "", "Slurm's partition; empty: the default.", own)
    text("account", "", "Slurm's account; empty: the default.", own)
    text("setup", "source .venv/bin/activate", "A shell line that readies each machine.", own)
    text("output", "", "File for the script; empty: it is printed.", own)


def check(program: tuple[str, ...], processes: int) -> None:
    """Raises `InputError` where the flags or the program would go wrong under Slurm."""
    given = command.FLAGS
    if not program:
        raise InputError("nothing to run; end the line with -- python -m launch.train ...")
    if not re.fullmatch(r"(\d+-)?\d{1,3}(:\d\d){0,2}", given.time):
        raise InputError(f"--time={given.time}: must be written as Slurm does, such as 24:00:00")
    if not re.fullmatch(r"[\w.-]+", given.job):
        raise InputError(f"--job={given.job}: must be letters, digits, dots and dashes")
    for name in ("partition", "account"):
        if not re.fullmatch(r"[\w.,-]*", given[name].value):
            raise InputError(f"--{name}={given[name].value}: must be a name")
    if "launch.train" in program and processes > 1 and flag_of(program, "coordinator") != "auto":
        raise InputError(
            f"launch.train in {processes} processes needs --coordinator=auto: without it each of "
            "them trains alone"
        )


def script(program: tuple[str, ...]) -> str:
    """The script for `sbatch`."""
    given = command.FLAGS
    options = {
        "job-name": given.job,
        "nodes": given.nodes,
        "ntasks-per-node": given.gpus_per_node,
        "gpus-per-node": given.gpus_per_node,
        "cpus-per-task": given.cpus_per_gpu,
        "time": given.time,
        "partition": given.partition,
        "account": given.account,
        # To the processes, not to this script: they save, it goes on below.
        "signal": f"TERM@{given.grace}",
        "requeue": None,
        "open-mode": "append",
        "output": "%x-%j.log",
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={value}")
        for name, value in options.items()
        if value != ""
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# Written by launch.slurm.",
            *lines,
            "set -uo pipefail",
            given.setup,
            f"export XLA_FLAGS={shlex.quote(joined(GPU_FLAGS))}",
            'LOG="$SLURM_JOB_NAME-$SLURM_JOB_ID.turn-${SLURM_RESTART_COUNT:-0}.log"',
            "# One that fails takes the others with it: they would wait for it.",
            f'srun --kill-on-bad-exit=1 --label --output="$LOG" {shlex.join(program)}',
            "STATUS=$?",
            'tail -n 20 "$LOG"',
            "# launch.train ends with 0 after SIGTERM too; then it says so.",
            # It reads to the end: where grep leaves at the first match, pipefail sees tail fail.
            f'if [ $STATUS = 0 ] && tail -n 200 "$LOG" | grep -c {shlex.quote(STOPPED)} >/dev/null',
            "then",
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            "exit $STATUS",
            "",
        ]
    )


def act(program: tuple[str, ...]) -> int:
    """Writes or prints the script."""
    given = command.FLAGS
    check(program, given.nodes * given.gpus_per_node)
    if given.output:
        write_file(pathlib.Path(given.output), script(program))
        print(f"{given.output}: submit it with `sbatch {shlex.quote(given.output)}`")
    else:
        print(script(program), end="")
    return 0


def split(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """This command's own arguments, and the program behind `--`."""
    if "--" not in argv:
        return argv, ()
    at = argv.index("--")
    return argv[:at], tuple(argv[at + 1 :])


def main() -> None:
    own, program = split(sys.argv)
    define()
    app.run(
        lambda rest: command.guarded(lambda: act(program), rest),
        argv=own,
        flags_parser=command.parse,
    )


if __name__ == "__main__":
    main()
