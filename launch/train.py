"""Trains an experiment's models, and goes on from the newest checkpoint where there is one.

  python -m launch.train --config=experiments/quickstart.py --workdir=runs/quickstart

With `--config.backbone=both` the attention model is trained in <workdir>/attention, then the
memory model on the same data in <workdir>/memory; with one backbone, in <workdir> itself. Each
is a model folder: `ratjax.load` reads it.

SIGTERM, or a platform's notice of a preemption, ends it with a checkpoint and status 0. Status 1: a
run that cannot go on (a loss that is not finite, a full disk or device), in one line. Status 3: the
watchdog ended it. Status 4: another process has ended. docs/train.md tells of all that.

`--config.mesh.fsdp=8` spreads the training over 8 devices; `--coordinator` over those of several
processes, each started with the same command.
"""

import dataclasses
import pathlib
import traceback
from collections.abc import Callable
from typing import NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

from launch import command, processes
from ratjax.ahead.exhausted import out_of_memory
from ratjax.ahead.saved_step import saved_step
from ratjax.config.data import Span, schedule
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import MeshConfig, check_data, check_model
from ratjax.config.model import ModelConfig
from ratjax.config.overrides import to_json
from ratjax.config.train import TrainConfig
from ratjax.data import MissingDataError, open_source
from ratjax.errors import ConfigError
from ratjax.files import Folder, as_folder
from ratjax.model.checkpoint import MODEL, check_tokenizer, locate, read_config
from ratjax.model.parameters import abstract_parameters
from ratjax.sharding import make_mesh
from ratjax.train import TrainingStopped, train

command.define_config()
command.define_workdir("Where checkpoints and metrics go. A run found there is resumed.")
command.define_dry_run()
processes.define()


def define_executable() -> None:
    """Defines `--executable`."""
    saved = "A training step that launch.compile_ahead saved: loaded, where it is the right one."
    flags.DEFINE_string("executable", None, saved, command.FLAGS)


define_executable()
flags.adopt_module_key_flags(command)


class Run(NamedTuple):
    """One model to train."""

    backbone: str
    workdir: Folder
    model: ModelConfig
    train: TrainConfig
    spans: tuple[Span, ...]


def plan(experiment: Experiment, workdir: Folder) -> list[Run]:
    """The runs of an experiment: one a backbone, each in its folder."""
    several = len(experiment.backbones) > 1
    spans = schedule(experiment.train, experiment.data)
    return [
        Run(
            backbone,
            workdir / backbone if several else workdir,
            experiment.model_config(backbone),
            _own_start(experiment.train, backbone),
            spans,
        )
        for backbone in experiment.backbones
    ]


def _own_start(config: TrainConfig, backbone: str) -> TrainConfig:
    """`train.init_from` narrowed to the backbone's own folder, where it has one."""
    own = as_folder(config.init_from) / backbone
    if config.init_from and (own / MODEL).is_file():
        return dataclasses.replace(config, init_from=str(own))
    return config


def fitting(experiment: Experiment) -> MeshConfig:
    """The experiment's mesh over the devices there are.

    Raises:
      ConfigError: it does not fit their number, the model or the batches.
    """
    mesh = experiment.mesh.resolve(jax.device_count())
    check_model(mesh, experiment.model)
    check_data(mesh, experiment.train, experiment.data)
    return mesh


def describe_mesh(mesh: MeshConfig) -> str:
    if mesh.size > 1:
        return "mesh: " + ", ".join(f"{axis} {size}" for axis, size in to_json(mesh).items())
    return "mesh: one device" + (f" of {jax.device_count()}" if jax.device_count() > 1 else "")


def describe(run: Run) -> dict:
    """Prints what a run would do, and returns it in numbers."""
    sizes = {name: array.size for name, array in abstract_parameters(run.model).items()}
    parameters = sum(sizes.values())
    tokens = sum((span.stop - span.start) * span.stage.tokens_per_step for span in run.spans)
    print(f"{run.backbone} -> {run.workdir}: {parameters:,} parameters, {tokens:,} tokens")
    for span in run.spans:
        stage = span.stage
        sources = ", ".join(f"{folder} ({weight:g})" for folder, weight in stage.sources)
        print(
            f"  steps {span.start + 1}-{span.stop}: {stage.batch_size} x {stage.sequence_length} "
            f"tokens from {sources}; active recurrence learning: {stage.recurrence}"
        )
    return {
        "steps": run.spans[-1].stop,
        "parameters": parameters,
        "tokens": tokens,
        "backbone": run.backbone,
    }


def check_inputs(experiment: Experiment, runs: list[Run]) -> None:
    """Opens everything that the runs read; what is not there yet is a warning."""
    data = experiment.data
    if data.prepare:
        command.resolve(data.prepare)
        print(f"before training, {data.prepare} makes what is missing")
    held_out = experiment.train.held_out
    for folder, length in sorted(
        {
            (folder, span.stage.sequence_length)
            for span in runs[0].spans
            for folder, _ in (*span.stage.sources, *held_out)
        }
    ):
        try:
            open_source(folder, length)
        except MissingDataError as error:
            command.warn(error)
    tokenizer = pathlib.Path(data.tokenizer)
    if data.tokenizer and not tokenizer.exists():
        command.warn(f"{tokenizer}: tokenizer does not exist")
    elif data.tokenizer:
        check_tokenizer(tokenizer, experiment.model)
    for start in sorted({run.train.init_from for run in runs} - {""}):
        if as_folder(start).exists():
            read_config(locate(as_folder(start), None)[0])
        else:
            command.warn(f"{start}: model folder does not exist")


def check_devices(experiment: Experiment) -> None:
    """Says how the training would be spread; devices that are not there are a warning."""
    try:
        experiment.mesh.resolve(jax.device_count())
    except ConfigError as error:
        command.warn(error)
    else:
        print(describe_mesh(fitting(experiment)))


def compiled_step(run: Run, mesh: Mesh | None) -> Callable | None:
    """The training step that `--executable` names; None without one."""
    if "executable" not in command.FLAGS or not command.FLAGS.executable:
        return None
    path = pathlib.Path(command.FLAGS.executable)
    step, said = saved_step(path, run.model, run.train, run.spans, mesh)
    print(said, flush=True)
    return step


def lost(error: Exception) -> str | None:
    """What to say where a device fails and other processes may be why; None in a single one."""
    if jax.process_count() == 1:
        return None
    traceback.print_exception(error)
    reason = str(error).splitlines()[0][:200]
    return (
        f"process {jax.process_index()} of {jax.process_count()}: another process has ended, or a "
        f"device has failed ({reason}); end the others, and the same command in all resumes"
    )


def main() -> int:
    processes.join()
    experiment = command.experiment()
    runs = plan(experiment, as_folder(command.FLAGS.workdir))
    summaries = [describe(run) for run in runs]
    if command.FLAGS.dry_run:
        check_devices(experiment)
        check_inputs(experiment, runs)
        last = summaries[-1]
        several = {"backbone": "both", "runs": summaries} if len(runs) > 1 else {}
        command.conclude({**last, **several})
        return 0
    config = fitting(experiment)
    print(describe_mesh(config))
    mesh = make_mesh(config) if config.size > 1 else None
    if experiment.data.prepare:
        processes.first_alone(lambda: command.resolve(experiment.data.prepare)(experiment))
    for run in runs:
        provenance = {
            "experiment": experiment.name,
            "backbone": run.backbone,
            "revision": command.revision(),
            "train": to_json(run.train),
            "data": to_json(experiment.data),
            "mesh": to_json(experiment.mesh),
        }
        try:
            step = compiled_step(run, mesh)
            done = train(run.model, run.train, experiment.data, run.workdir, provenance, mesh, step)
        except TrainingStopped as error:
            return command.leave(command.fail(error, status=1))
        except jax.errors.JaxRuntimeError as error:
            length = max(span.stage.sequence_length for span in run.spans)
            if said := out_of_memory(error, run.model, run.train, length):
                return command.leave(command.fail(said, status=1))
            if said := lost(error):
                return command.leave(command.fail(said, status=processes.LOST))
            raise
        if not done:
            print(f"{run.workdir}: stopped by a signal; the same command resumes it")
            return 0
        print(f"{run.workdir}: trained {run.spans[-1].stop} steps")
    return 0


if __name__ == "__main__":
    command.run(
        main, interrupted="interrupted; the same command goes on from the newest checkpoint"
    )
