"""The whole path on one machine: trains the tiny matched pair, evaluates it, writes the report.

  make quickstart

Runs the commands a user would run, and prints them: `launch.train` and `launch.evaluate` for
both backbones side by side (one process a core), then `launch.report`. A run starts afresh.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

from absl import flags

from launch import command
from ratjax.config.experiment import BACKBONES
from ratjax.errors import InputError

flags.DEFINE_string("config", "experiments/quickstart.py", "The experiment file.")
flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes; emptied first.")
flags.DEFINE_list("override", [], "Passed on to training and evaluation, as field=value.")

ROOT = pathlib.Path(__file__).parent.parent
# One core a process: at this size two processes with a core each do more than one with two.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def start(module: str, log: pathlib.Path, *arguments: str) -> subprocess.Popen:
    """Starts `python -m launch.<module>`, its output in `log`."""
    words = [sys.executable, "-m", f"launch.{module}", *arguments]
    print("$", shlex.join(["python", *words[1:]]), flush=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        return subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )


def wait(running: dict[pathlib.Path, subprocess.Popen]) -> None:
    """Waits for all; stops the others and shows the log's end where one fails.

    Raises:
      InputError: a process failed.
    """
    try:
        while any(process.poll() is None for process in running.values()):
            failed = [log for log, p in running.items() if p.poll() not in (None, 0)]
            if failed:
                break
            time.sleep(0.2)
        for log, process in running.items():
            if process.poll() not in (None, 0):
                print(log.read_text()[-4000:], file=sys.stderr)
                raise InputError(f"{log}: the command failed with status {process.returncode}")
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()


def main() -> int:
    config, workdir = command.FLAGS.config, pathlib.Path(command.FLAGS.workdir).absolute()
    if not (ROOT / config).is_file() and not pathlib.Path(config).is_file():
        raise InputError(f"config={config!r}: no such file")
    began = time.perf_counter()
    shutil.rmtree(workdir, ignore_errors=True)
    shared = [f"--config={config}", *(f"--config.{x}" for x in command.FLAGS.override)]
    logs = workdir / "logs"

    def phase(name: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {name}", flush=True)

    phase("tokenizer and training rows")
    prepare = logs / "prepare.log"
    wait({prepare: start("prepare", prepare, *shared)})
    for module, name in (("train", "training both models"), ("evaluate", "evaluating both")):
        phase(name)
        running = {}
        for backbone in BACKBONES:
            log = logs / f"{module}_{backbone}.log"
            model, needle = workdir / backbone, workdir / "needle" / backbone
            where = [f"--workdir={model}"]
            if module == "evaluate":
                where = [f"--checkpoint={model}", f"--workdir={needle}"]
            running[log] = start(module, log, *shared, f"--config.backbone={backbone}", *where)
        wait(running)
    phase("report")
    log = logs / "report.log"
    runs = ",".join(str(workdir / "needle" / backbone) for backbone in BACKBONES)
    report = ["--runs=" + runs, f"--target={workdir / 'report'}", f"--training={workdir}"]
    wait({log: start("report", log, *report)})
    phase("done")
    print((workdir / "report" / "report.md").read_text().split("\n## ")[0])
    print(f"Report: {workdir / 'report' / 'index.html'}")
    return 0


if __name__ == "__main__":
    command.run(main)
