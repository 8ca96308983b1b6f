"""Compiles a program of an experiment for TPUs that are not there, and says whether it fits.

  python -m launch.compile_ahead --config=experiments/olmo2_7b_memory.py --topology=v5p:4x4x4

Needs the TPU's compiler (`make setup-tpu`) and no TPU; weights and data need not exist. Prints what
the program takes of each chip's memory, what it calculates, moves and sends, its kernels, and how
fast it can be at best. The last line is one JSON object. A program that does not fit ends with
status 1, after its largest buffers and the fields that make them smaller.
"""

import dataclasses
import pathlib
import re
import sys
import time
from typing import Any

import jax
from absl import flags

from launch import command
from ratjax.ahead import executable
from ratjax.ahead.libtpu import version
from ratjax.ahead.overflow import arguments, parse_overflow
from ratjax.ahead.programs import Program, decode, prefill, training
from ratjax.ahead.report import as_json, lines, overflow_json, overflow_lines, report
from ratjax.ahead.suggest import candidates
from ratjax.ahead.topology import GIB, Topology, parse_topology
from ratjax.ahead.trials import ranked, trial
from ratjax.config.data import DataStage, schedule
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import check_data, check_model
from ratjax.config.overrides import to_json
from ratjax.errors import InputError
from ratjax.needle.settings import pattern_of

command.define_config()
command.define_dry_run()


def define() -> None:
    """Defines the flags that only this command has."""
    own = command.FLAGS
    pods = "Chips to compile for: v5p:4x4x4, v5e:8x8, v6e-256, ..."
    flags.DEFINE_string("topology", None, pods, own)
    flags.DEFINE_enum("program", "train", ("train", "prefill", "decode"), "What is compiled.", own)
    flags.DEFINE_integer("stage", 0, "train: which of data.stages, from 0.", flag_values=own)
    settings = "prefill, decode: a needle setting, such as quest, moba:1/8 or snapkv:1/4."
    flags.DEFINE_string("setting", "dense", settings, own)
    kept = "A file to keep the compiled program in, for the launch to load."
    flags.DEFINE_string("save", None, kept, own)
    flags.DEFINE_string("hlo", None, "A file for the compiled program's text.", own)
    tried = "Try meshes, microbatches and rematerialisation; list those that fit, fastest first."
    flags.DEFINE_bool("suggest", False, tried, own)
    most = "--suggest: how many of the most promising to compile."
    flags.DEFINE_integer("suggest_compiles", 6, most, flag_values=own)
    longest = "--suggest: seconds that one of them may take."
    flags.DEFINE_integer("suggest_seconds", 1200, longest, flag_values=own)
    flags.mark_flag_as_required("topology", own)


define()
flags.adopt_module_key_flags(command)


def backbone_of(experiment: Experiment) -> str:
    """The backbone that is compiled: of both, the larger one."""
    return experiment.backbones[-1]


def program_of(experiment: Experiment, topology: Topology, devices: list) -> Program:
    """The program that the flags name.

    Raises:
      InputError: no such stage or setting, or a mesh that does not fit.
    """
    model = experiment.model_config(backbone_of(experiment))
    if command.FLAGS.program == "train":
        spans = schedule(experiment.train, experiment.data)
        mesh, stage = mesh_of(experiment, topology), stage_of(experiment)
        return training(model, experiment.train, stage, spans[-1].stop, mesh, devices)
    needle = experiment.needle
    shape = (needle.batch_size, needle.context_length, needle.tokens_to_generate)
    build = {"prefill": prefill, "decode": decode}[command.FLAGS.program]
    return build(model, pattern_of(setting_of(experiment)), *shape, devices[0])


def stage_of(experiment: Experiment) -> DataStage:
    """The stage of training that `--stage` names."""
    stages = experiment.data.stages
    if not 0 <= command.FLAGS.stage < len(stages):
        raise InputError(f"--stage={command.FLAGS.stage}: the run has {len(stages)}, from 0")
    return stages[command.FLAGS.stage]


def mesh_of(experiment: Experiment, topology: Topology):
    """The experiment's mesh on this topology."""
    mesh = experiment.mesh.resolve(topology.chips)
    check_model(mesh, experiment.model)
    check_data(mesh, experiment.train, experiment.data)
    return mesh


def setting_of(experiment: Experiment):
    """The needle setting that `--setting` names."""
    method, _, budget = command.FLAGS.setting.partition(":")
    for setting in experiment.needle.settings():
        if setting.method == method and budget in ("", setting.budget):
            return setting
    known = sorted({f"{s.method}:{s.budget}" for s in experiment.needle.settings()})
    raise InputError(f"--setting={command.FLAGS.setting}: known: {', '.join(known)}")


def describe(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """Prints what is compiled, and returns it as JSON types."""
    about = {
        "experiment": experiment.name,
        "backbone": backbone_of(experiment),
        "program": command.FLAGS.program,
        "topology": str(topology),
        "accelerator_type": topology.accelerator_type,
        "chips": topology.chips,
        "hosts": topology.hosts,
    }
    where = f"{topology} ({topology.accelerator_type}, {topology.chips} chips)"
    print(f"{experiment.name}, {backbone_of(experiment)}: {command.FLAGS.program} on {where}")
    if command.FLAGS.program == "train":
        mesh = mesh_of(experiment, topology)
        stage = stage_of(experiment)
        about["mesh"] = to_json(mesh)
        about["microbatches"] = experiment.train.microbatches
        about["remat"] = experiment.model.remat
        axes = ", ".join(f"{axis} {size}" for axis, size in about["mesh"].items())
        print(
            f"mesh: {axes}; {stage.batch_size} x {stage.sequence_length} tokens in "
            f"{experiment.train.microbatches} microbatches; active recurrence learning: "
            f"{stage.recurrence}; rematerialisation: {experiment.model.remat}",
            flush=True,
        )
    else:
        setting, needle = setting_of(experiment), experiment.needle
        about |= {"setting": dataclasses.asdict(setting), "batch": needle.batch_size}
        print(
            f"{setting.method}, budget {setting.budget}: {needle.batch_size} prompts of "
            f"{needle.context_length} tokens, on one chip",
            flush=True,
        )
    return about


def key_of(experiment: Experiment, topology: Topology, devices: list) -> dict[str, Any]:
    """What a saved training step is recognised by."""
    return executable.key_of(
        experiment.model_config(backbone_of(experiment)),
        experiment.train,
        stage_of(experiment),
        schedule(experiment.train, experiment.data)[-1].stop,
        mesh_of(experiment, topology),
        devices[0].device_kind,
    )


def main() -> int:
    # What is compiled here is for other machines: JAX's own cache would keep a copy of it.
    jax.config.update("jax_enable_compilation_cache", False)
    experiment = command.experiment()
    topology = parse_topology(command.FLAGS.topology)
    if command.FLAGS.suggest:
        return suggest_for(experiment, topology)
    if command.FLAGS.save and command.FLAGS.program != "train":
        raise InputError(f"--save={command.FLAGS.save}: only the training step is loaded again")
    about = describe(experiment, topology)
    devices = topology.devices()
    program = program_of(experiment, topology, devices)
    if command.FLAGS.dry_run:
        command.conclude({**about, "flops_of_model": program.model_flops / program.devices})
        return 0
    start = time.monotonic()
    lowered = program.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = parse_overflow(str(error))
        if found is None:
            raise
        train = command.FLAGS.program == "train"
        length = stage_of(experiment).sequence_length if train else experiment.needle.context_length
        if not found.buffers and found.memory == "hbm":
            inputs = (program.parameters, program.optimizer, program.inputs)
            found = found._replace(buffers=arguments(inputs))
        print("\n".join(overflow_lines(found, experiment.model, length, train)))
        command.conclude({**about, **overflow_json(found)})
        return 1
    seconds = time.monotonic() - start
    if command.FLAGS.hlo:
        pathlib.Path(command.FLAGS.hlo).write_text(compiled.as_text())
    found = report(compiled, program, topology, experiment.model.remat != "none")
    print("\n".join(lines(found, program, topology)))
    numbers = as_json(found, program, topology)
    if command.FLAGS.save:
        path = pathlib.Path(command.FLAGS.save)
        size = executable.save(path, compiled, key_of(experiment, topology, devices))
        print(f"{path}: {size / 2**20:.0f} MiB")
    command.conclude(
        {
            **about,
            **numbers,
            "compile_seconds": round(seconds, 1),
            "versions": {"jax": jax.__version__, "libtpu": version()},
        }
    )
    return 0 if numbers["fits"] else 1


def suggest_for(experiment: Experiment, topology: Topology) -> int:
    """Compiles the most promising settings of the training step, and lists those that fit."""
    model = experiment.model_config(backbone_of(experiment))
    stage = stage_of(experiment)
    found = candidates(topology, model, experiment.train, stage)
    chosen = found[: command.FLAGS.suggest_compiles]
    print(f"{len(found)} settings may fit on {topology}; the {len(chosen)} most promising:")
    for candidate in chosen:
        print(
            f"  {' '.join(candidate.flags())}: {candidate.hbm_bytes / GIB:.1f} GiB and "
            f"{candidate.seconds:.3g} s by arithmetic",
            flush=True,
        )
    if command.FLAGS.dry_run:
        command.conclude({"candidates": len(found), "compiled": len(chosen)})
        return 0
    base = [a for a in sys.argv[1:] if not re.match("--(no)?(suggest|save|hlo|dry_run)", a)]
    results = []
    for candidate in chosen:
        arguments = ["-m", "launch.compile_ahead", *base, *candidate.flags()]
        result = trial(arguments, command.FLAGS.suggest_seconds)
        results.append({**result, "flags": candidate.flags()})
        verdict = result.get("failed") or ("fits" if result["fits"] else "does not fit")
        print(f"{' '.join(candidate.flags())}: {verdict}", flush=True)
    fitting = ranked(results)
    for result in fitting:
        print(
            f"{result['step_seconds']:.4g} s at best ({result['bound']}; {result['mfu']:.1%} MFU), "
            f"{result['hbm_bytes_per_chip'] / GIB:.2f} GiB: {' '.join(result['flags'])}"
        )
    command.conclude({"candidates": len(found), "compiled": len(results), "fitting": fitting})
    return 0 if fitting else 1


if __name__ == "__main__":
    command.run(main)
