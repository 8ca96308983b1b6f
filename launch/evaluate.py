"""Evaluates trained models on the needle tasks, under every setting of an experiment.

  python -m launch.evaluate --config=experiments/quickstart.py \\
      --checkpoint=runs/quickstart --workdir=runs/quickstart/needle

With `--config.backbone=both`, `--checkpoint` holds one model folder a backbone (as
`launch.train` writes them); with one backbone it is that model's folder. Writes results.json,
predictions.jsonl, prompts.jsonl and timing.json into the work folder. Killed, it goes on where it
stopped when the same command runs again, and ends with the same results.

Batches are spread over all devices; `--config.mesh.tensor=4` also cuts the model into four, and
`--coordinator` adds the devices of other processes, each started with the same command.
"""

import io
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import tokenizers
from absl import flags
from jax.sharding import Mesh

from launch import command, processes
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import check_model as check_divides
from ratjax.config.needle import Checkpoint
from ratjax.config.overrides import to_json
from ratjax.errors import ConfigError, InputError
from ratjax.model.checkpoint import (
    TOKENIZER,
    check_tokenizer,
    load_model,
    locate,
    newest_step,
    read_config,
)
from ratjax.needle.engine import Evaluation, build_prompts, evaluate, stop_token_of
from ratjax.needle.files import tasks_in
from ratjax.needle.journal import Journal
from ratjax.needle.outputs import JOURNAL, write_outputs
from ratjax.needle.settings import identity, pattern_of
from ratjax.provenance import provenance
from ratjax.sharding import make_mesh

command.define_config()
command.define_workdir("Where results.json and predictions.jsonl go.")
command.define_dry_run()
processes.define()
flags.DEFINE_string("checkpoint", None, "A model folder, or one folder a backbone inside it.")
flags.mark_flag_as_required("checkpoint")
flags.adopt_module_key_flags(command)


def chosen(experiment: Experiment) -> tuple[Checkpoint, ...]:
    """The models to evaluate: the experiment's own, or a folder a backbone."""
    listed = experiment.needle.checkpoints
    if not listed:
        return tuple(Checkpoint(name, name, name == "memory") for name in experiment.backbones)
    if experiment.backbone == "both":
        return listed
    return tuple(one for one in listed if one.backbone == experiment.backbone)


def folders(experiment: Experiment, root: pathlib.Path) -> dict[Checkpoint, pathlib.Path]:
    """Each model's folder."""
    models = chosen(experiment)
    if len(models) == 1 and not (root / models[0].folder).is_dir():
        return {models[0]: root}
    return {one: root / one.folder for one in models}


def check_settings(experiment: Experiment) -> None:
    """Raises `ConfigError` where a setting asks a model without a memory for what enters one."""
    swapped = [one for one in experiment.needle.settings() if one.uses_raw]
    for model in chosen(experiment):
        if swapped and not model.memory:
            raise ConfigError(
                "needle.extra",
                identity(swapped[0])["selector"],
                f"tells a memory's states from raw keys, and {model.backbone} has no memory; "
                "evaluate --config.backbone=memory",
            )


def fitting(experiment: Experiment, models: Iterable[pathlib.Path]) -> Mesh | None:
    """The devices to spread the evaluation over; None for one alone.

    Raises:
      ConfigError: a mesh that does not fit their number or a model.
    """
    config = experiment.mesh.resolve(jax.device_count())
    if config.context != 1:
        raise ConfigError(
            "mesh.context", config.context, "evaluation shares out prompts and heads, set it to 1"
        )
    for folder in models:
        check_divides(config, read_config(locate(folder, None)[0]))
    return make_mesh(config) if config.size > 1 else None


def check_model(model: Checkpoint, folder: pathlib.Path) -> None:
    """Raises `InputError` where a folder has no checkpoint, or a memory and should have none."""
    if not folder.exists() and model.source:
        raise InputError(f"{folder}: no such folder; {model.source}")
    memory = read_config(locate(folder, None)[0]).memory is not None
    if memory != model.memory:
        found, wanted = (("attention", "memory")[with_it] for with_it in (memory, model.memory))
        raise InputError(
            f"{folder}: holds the {found} backbone, not {wanted}; give its own folder, or "
            f"--config.backbone={found}"
        )
    newest_step(locate(folder, None)[0])


def read_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer beside a model."""
    folder = locate(folder, None)[0]
    if not (folder / TOKENIZER).exists():
        raise InputError(f"{folder / TOKENIZER}: missing; needle prompts are built with it")
    check_tokenizer(folder / TOKENIZER, read_config(folder))
    return tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))


def dry_run(experiment: Experiment, models: dict[Checkpoint, pathlib.Path]) -> None:
    """Validates settings, models and prompts; prints every setting and the counts."""
    settings = experiment.needle.settings()
    try:
        fitting(experiment, ())
    except ConfigError as error:
        command.warn(error)
    for model, folder in models.items():
        for setting in settings:
            print(f"{model.backbone}: {pattern_of(setting)} selector_seed={setting.selector_seed}")
        try:
            check_model(model, folder)
            tokenizer = read_tokenizer(folder)
        except InputError as error:
            command.warn(error)
            continue
        stop_token_of(tokenizer)
        build_prompts(experiment.needle, 1, tokenizer)
    cells = len(models) * len(settings)
    files, tasks = experiment.needle.files, experiment.needle.tasks
    tasks = len(tasks_in(files, tasks) if files else tasks)
    command.conclude({"settings": cells, "tasks": tasks, "cells": cells * tasks})


def describe(experiment: Experiment, parameters: dict[str, int]) -> dict[str, Any]:
    """The `meta` of results.json; without the date, which stands with the times."""
    measured_with = provenance()
    del measured_with["date"]
    repeated = experiment.needle.paper_checkpoints
    return {
        **measured_with,
        **({"paper_checkpoints": repeated} if repeated else {}),
        "commit": command.revision(),
        "config": to_json(experiment),
        "description": experiment.description,
        "parameters": parameters,
    }


def evaluate_all(
    experiment: Experiment,
    models: dict[Checkpoint, pathlib.Path],
    mesh: Mesh | None,
    journal: Journal | None,
) -> tuple[list[Evaluation], dict[str, int]]:
    """Every model's evaluation, and how many parameters each has."""
    evaluations, parameters = [], {}
    for checkpoint, folder in models.items():
        model = load_model(folder, experiment.needle.dtype or None, mesh=mesh, inference=True)
        parameters[checkpoint.backbone] = sum(leaf.size for leaf in jax.tree.leaves(model))
        labels = {
            "run": experiment.name,
            "backbone": checkpoint.backbone,
            "train_seed": experiment.train.seed,
            "train_step": newest_step(locate(folder, None)[0]),
        }
        evaluations.append(
            evaluate(
                model,
                read_tokenizer(folder),
                experiment.needle,
                experiment.samples,
                labels,
                journal,
                say=(lambda line: print(line, flush=True)) if journal else (lambda _: None),
                stream=None if journal else io.StringIO(),
                mesh=mesh,
            )
        )
        del model  # before the next one is loaded
    return evaluations, parameters


def main() -> int:
    # Weights and cache of the paper's size need more than the three quarters of a GPU that JAX
    # takes by itself; nothing else runs there. Read when the first device is asked for.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    processes.join()
    experiment = command.experiment()
    workdir = pathlib.Path(command.FLAGS.workdir)
    check_settings(experiment)
    models = folders(experiment, pathlib.Path(command.FLAGS.checkpoint))
    if command.FLAGS.dry_run:
        dry_run(experiment, models)
        return 0
    for checkpoint, folder in models.items():
        check_model(checkpoint, folder)
        stop_token_of(read_tokenizer(folder))
    mesh = fitting(experiment, models.values())
    # One process keeps the journal and writes the results; all of them run the batches.
    journal = Journal(workdir / JOURNAL, command.warn) if jax.process_index() == 0 else None
    try:
        evaluations, parameters = evaluate_all(experiment, models, mesh, journal)
        if journal is not None:
            meta = describe(experiment, parameters)
            measured_on = {name: meta[name] for name in ("device", "device_count")}
            write_outputs(workdir, meta, evaluations, {**measured_on, "date": provenance()["date"]})
            journal.remove()
    finally:
        if journal is not None:
            journal.close()
    cells = sum(len(found.results) for found in evaluations)
    print(f"{workdir / 'results.json'}: {cells} cells")
    return 0


if __name__ == "__main__":
    command.run(main, interrupted="interrupted; the same command goes on with what is missing")
