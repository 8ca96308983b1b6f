import json
import subprocess
import sys

import pytest

from launch import command


def define():
    command.define_config()
    command.define_workdir("a folder")
    command.define_dry_run()


def show():
    """A command that prints what it was given."""
    experiment = command.experiment()
    command.conclude(
        {
            "steps": experiment.train.steps,
            "memory_learning_rate": experiment.train.memory_learning_rate,
            "second": experiment.data.stages[1].steps,
            "tasks": list(experiment.needle.tasks),
            "qk_norm": experiment.model.qk_norm,
            "backbone": experiment.backbone,
        }
    )


def test_overrides_of_every_kind(launch, experiment_file):
    status, out, err = launch(
        show,
        define,
        f"--config={experiment_file()}",
        "--workdir=x",
        "--config.train.steps=10",
        "--config.train.memory_learning_rate=2e-3",
        "--config.data.stages[1].steps=7",
        "--config.needle.tasks=('niah_single_1',)",
        "--noconfig.model.qk_norm",
        "--config.backbone=memory",
    )
    assert (status, err) == (0, [])
    assert json.loads(out[-1]) == {
        "steps": 10,
        "memory_learning_rate": 2e-3,
        "second": 7,
        "tasks": ["niah_single_1"],
        "qk_norm": False,
        "backbone": "memory",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.stepz=3"], "train.stepz: unknown field; did you mean steps"),
        (["--config.trian.steps=3"], "trian.steps: unknown field; did you mean train?"),
        (["--config.train.steps=ten"], "train.steps='ten': must be of type int"),
        (["--config.train.warmup=2"], "train.warmup=2.0: must be at least 0 and below 1"),
        (["--config.backbone=memry"], "backbone='memry': must be one of 'attention', 'memory'"),
        (["--config.data.stages[1].stepz=3"], "data.stages[1].stepz: unknown field; did you"),
        (["--config.data.stages[5].steps=3"], "data.stages[5].steps: unknown field; it has 2"),
        (["--config.train.steps.x=3"], "train.steps.x: unknown field; it has no fields"),
        (["--workdri=3"], "Unknown command line flag 'workdri'. Did you mean: workdir"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_command_lines_are_one_line(launch, experiment_file, arguments, message):
    status, out, err = launch(
        show, define, f"--config={experiment_file()}", "--workdir=x", *arguments
    )
    assert (status, out) == (2, [])
    assert len(err) == 1 and err[0].startswith(f"error: {message}")


def test_required_flags_and_files(launch, experiment_file, tmp_path):
    path = experiment_file()
    for arguments, message in (
        (["--workdir=x"], "--config is required"),
        ([f"--config={path}"], "--workdir is required"),
        ([f"--config={tmp_path}/tinny.py", "--workdir=x"], f"no such file; did you mean {path}"),
        (["--config.train.steps=3", f"--config={path}", "--workdir=x"], "before a value for"),
    ):
        status, out, err = launch(show, define, *arguments)
        assert (status, out, len(err)) == (2, [], 1)
        assert err[0].startswith("error: ") and message in err[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("config.train.stepz = 3", "train.stepz: unknown field; did you mean steps"),
        ("config.train.steps = 'many'", "train.steps='many': must be of type int"),
        ("TrainConfig(beta1=2.0)", "train.beta1=2.0: must be at least 0 and below 1"),
        ("config.train.nothing.x = 3", "{path}:21: AttributeError"),
        ("import no_such_module", "{path}:21: ModuleNotFoundError: No module named"),
        ("config = (", "{path}:21: SyntaxError: "),
        ("config = 3", "{path}: get_config() must return a ConfigDict"),
    ],
)
def test_bad_experiment_files_are_one_line(launch, experiment_file, edit, message):
    path = experiment_file(edit)
    status, out, err = launch(show, define, f"--config={path}", "--workdir=x")
    assert (status, out) == (2, [])
    assert len(err) == 1 and err[0].startswith("error: " + message.format(path=path))


def test_defects_keep_their_traceback(launch, experiment_file):
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch(broken, define, f"--config={experiment_file()}", "--workdir=x")


@pytest.mark.parametrize("when", ["parsed", "run"])
def test_an_interrupt_is_one_line(when):
    """From the first flag on; and the interpreter does not go on to end in its own way."""
    code = f"""
import atexit, signal
from launch import command

def stop(*_):
    signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(print, "the end")
if {when!r} == "parsed":
    command.parse = stop
command.run(stop, interrupted="interrupted; more")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted; more\n")


def test_help_explains_every_flag_and_field():
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--helpfull"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--workdir", "--[no]dry_run"):
        assert f"  {flag}: " in done.stdout
    assert "train.steps (int) = 0: batches to train on." in done.stdout
    assert "needle.budgets" in done.stdout and "MISSING" not in done.stdout


def test_resolve():
    assert command.resolve("json:dumps") is json.dumps
    for reference, message in (
        ("json:dumpz", "no such function; did you mean dump"),
        ("no_such_module:f", "No module named 'no_such_module'"),
    ):
        with pytest.raises(command.InputError, match=message):
            command.resolve(reference)


def test_revision_is_a_commit_or_unknown(monkeypatch):
    monkeypatch.delenv("RATJAX_REVISION", raising=False)
    revision = command.revision()
    assert revision is None or len(revision.removesuffix("+changes")) == 40
    monkeypatch.setenv("RATJAX_REVISION", "0123abc")
    assert command.revision() == "0123abc"  # git may be that of another copy
    monkeypatch.delenv("RATJAX_REVISION")
    monkeypatch.setenv("PATH", "")
    assert command.revision() is None


def test_compilation_cache_is_on_unless_told_where(monkeypatch, tmp_path):
    before = command.jax.config.jax_compilation_cache_dir
    try:
        command.jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("HOME", str(tmp_path))
        command.use_compilation_cache()
        found = command.jax.config.jax_compilation_cache_dir
        assert found == str(tmp_path / ".cache" / "ratjax" / "xla")
        command.jax.config.update("jax_compilation_cache_dir", "elsewhere")
        command.use_compilation_cache()
        assert command.jax.config.jax_compilation_cache_dir == "elsewhere"
    finally:
        command.jax.config.update("jax_compilation_cache_dir", before)
