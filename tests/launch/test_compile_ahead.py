import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from launch import command, compile_ahead, processes
from launch import train as launch_train
from ratjax.ahead import executable, libtpu
from ratjax.ahead.topology import Topology
from tests.ahead.programs import OVERFLOW

ROOT = pathlib.Path(__file__).parents[2]
SEVEN = ROOT / "experiments" / "olmo2_7b_memory.py"


def define():
    command.define_config()
    command.define_dry_run()
    compile_ahead.define()


@pytest.fixture
def ahead(launch, monkeypatch):
    """The command on as many CPU devices as there are, in place of a pod's."""
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices() * self.chips)
    used = jax.config.jax_enable_compilation_cache
    # It switches the cache off, as programs from there cannot be saved again; JAX asks but once.
    compilation_cache.reset_cache()
    yield lambda *arguments: launch(compile_ahead.main, define, *arguments)
    jax.config.update("jax_enable_compilation_cache", used)
    compilation_cache.reset_cache()


def test_dry_run_says_what_would_be_compiled(ahead):
    status, out, err = ahead(f"--config={SEVEN}", "--topology=v5p-128", "--dry_run")
    assert (status, err) == (0, [])
    summary = json.loads(out[-1])
    assert summary["mesh"] == {"data": 1, "fsdp": 64, "tensor": 1, "context": 1}
    assert (summary["topology"], summary["chips"], summary["hosts"]) == ("v5p:4x4x4", 64, 16)
    # 6 operations a parameter and token, two passes, plus attention
    parameters, tokens = 7.3e9 + 0.54e9 - 0.41e9, 768 * 4096
    assert 2 * 6 * parameters * tokens < 64 * summary["flops_of_model"]
    assert 64 * summary["flops_of_model"] < 1.1 * 2 * 6 * parameters * tokens


@pytest.mark.parametrize("program", ["prefill", "decode"])
def test_dry_run_of_inference(ahead, program):
    arguments = (f"--config={SEVEN}", "--topology=v5e-64", f"--program={program}", "--dry_run")
    status, out, _ = ahead(*arguments, "--setting=quest:1/8")
    assert status == 0
    setting = json.loads(out[-1])["setting"]
    assert (setting["method"], setting["budget"], setting["k"]) == ("quest", "1/8", 8)


def test_suggestions_by_arithmetic(ahead):
    status, out, _ = ahead(f"--config={SEVEN}", "--topology=v6e-256", "--suggest", "--dry_run")
    assert status == 0
    summary = json.loads(out[-1])
    assert summary["compiled"] == 6 < summary["candidates"]
    assert sum(line.startswith("  --config.mesh.data=") for line in out) == 6


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--topology=v5p:4x4", "v5p has 3 axes"),
        ("--config.mesh.fsdp=3", "comes to 3, but there are 64 devices"),
        ("--config.train.microbatches=24", "raise the batch, or lower the microbatches"),
        ("--stage=4", "--stage=4: the run has 1"),
    ],
)
def test_what_is_wrong_is_one_line(ahead, argument, message):
    status, _, err = ahead(f"--config={SEVEN}", "--topology=v5p-128", argument)
    assert status == 2 and len(err) == 1 and message in err[0]


def test_an_unknown_setting_lists_those_there_are(ahead):
    status, _, err = ahead(
        f"--config={SEVEN}", "--topology=v5p-128", "--program=decode", "--setting=quest:1/3"
    )
    assert status == 2 and "moba:1/16" in err[0]


def test_libtpu_that_is_missing_is_one_line(launch, monkeypatch):
    monkeypatch.setattr(libtpu, "folder", lambda: None)
    status, _, err = launch(compile_ahead.main, define, f"--config={SEVEN}", "--topology=v5p-128")
    assert status == 2 and len(err) == 1 and "make setup-tpu" in err[0]


def test_a_program_that_does_not_fit(ahead, monkeypatch):
    class TooLarge:
        name, devices, model_flops = "train", 64, 1.0

        def lower(self):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(OVERFLOW)

    monkeypatch.setattr(compile_ahead, "program_of", lambda *_: TooLarge())
    status, out, _ = ahead(f"--config={SEVEN}", "--topology=v5e-64")
    assert status == 1
    summary = json.loads(out[-1])
    assert summary["fits"] is False
    assert summary["hbm_bytes_per_chip"] > summary["hbm_available_per_chip"]
    assert summary["largest_buffers"][0]["shape"] == "f32[16,4096,4096]"
    assert any("raise mesh.fsdp" in line for line in out)


def test_a_program_is_compiled_read_and_kept(ahead, experiment_file, tmp_path):
    """On the CPU, by its compiler: the report has the form that a pod's has."""
    status, out, err = ahead(
        f"--config={experiment_file()}",
        "--topology=v5e:1x1",
        "--config.backbone=memory",
        "--config.data.stages[0].recurrence=two_step",
        f"--save={tmp_path}/step",
        f"--hlo={tmp_path}/step.txt",
    )
    assert (status, err) == (0, [])
    summary = json.loads(out[-1])
    assert summary["fits"] is True
    # 2768 parameters and two moments, in float32, and two counts
    assert summary["memory"]["parameters"] == 4 * 2768
    assert summary["memory"]["optimizer"] == 8 * 2768 + 4
    assert summary["hbm_bytes_per_chip"] == sum(summary["memory"].values())
    assert summary["flops"] > 0.5 * summary["flops_of_model"] > 0
    assert summary["kernels"] == {} and summary["collectives"] == {}
    assert (tmp_path / "step").stat().st_size > 1000
    assert (tmp_path / "step.txt").read_text().startswith("HloModule")


@pytest.mark.slow
def test_the_launch_trains_with_what_was_saved(
    ahead, launch, experiment_file, tmp_path, rows, monkeypatch
):
    """The same losses, with the training step compiled by one command and loaded by the other."""
    own = (f"--config={experiment_file()}", "--config.backbone=memory")
    assert ahead(*own, "--topology=v5e:1x1", f"--save={tmp_path}/step")[0] == 0

    def train(name, *arguments):
        def define_train():
            command.define_config()
            command.define_workdir("a folder")
            command.define_dry_run()
            processes.define()
            launch_train.define_executable()

        flags = (*own, f"--workdir={tmp_path}/{name}", "--config.mesh.data=1", *arguments)
        status, out, err = launch(launch_train.main, define_train, *flags)
        assert (status, err) == (0, [])
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return out, [json.loads(line)["loss"] for line in lines]

    ran = []
    load = executable.load

    def counted(*arguments):
        compiled, problem = load(*arguments)
        return compiled and (lambda *given: ran.append(given) or compiled(*given)), problem

    monkeypatch.setattr(executable, "load", counted)
    saved = f"--executable={tmp_path}/step"
    out, losses = train("loaded", saved)
    assert f"{tmp_path}/step: loaded" in out and len(ran) == 4
    assert len(losses) == 4 and losses == train("compiled")[1]
    out, other = train("other", saved, "--config.train.z_loss=0.5")
    (said,) = (line for line in out if "compiling anew" in line)
    assert "compiled for train=" in said and len(other) == 4


TINY = (
    "--config.backbone=memory",
    "--config.model.vocab_size=512",
    "--config.model.hidden_size=512",
    "--config.model.num_layers=2",
    "--config.model.num_heads=4",
    "--config.model.num_kv_heads=4",
    "--config.model.intermediate_size=512",
    "--config.data.stages[0].sequence_length=256",
    "--config.data.stages[0].batch_size=8",
    "--config.train.microbatches=2",
)


@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_training_step_compiles_for_a_tpu():
    """As a user runs it, without a variable set: sharded, with its kernels, by the TPU's compiler.

    Two microbatches, so that gradients are added up: see `ratjax.train.compiler_options`.
    """
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("TPU", "JAX"))}
    arguments = ("-m", "launch.compile_ahead", f"--config={SEVEN}", "--topology=v5e:2x2", *TINY)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["fits"] is True
    kernels = summary["kernel_runs"]
    # two layers, two microbatches, two passes; forward runs again in the backward pass
    assert (kernels["decay_scan_forward"], kernels["decay_scan_backward"]) == (16, 8)
    assert any("splash" in name for name in kernels)
    assert any("strided" in name for name in kernels)
    assert {"all-gather", "all-to-all"} <= summary["collectives"].keys()
    # what the model needs and the forward pass once more
    assert 1.2 < summary["flops"] / summary["flops_of_model"] < 1.6
