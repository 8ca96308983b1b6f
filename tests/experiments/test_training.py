"""Training runs at full size: dry runs, pairs, published recipes, and what their headers say."""

import dataclasses
import importlib
import json
import pathlib
import re
import statistics

import pytest

from experiments import recipes
from launch import command, processes
from launch import train as launch_train
from ratjax.ahead.topology import CHIPS
from ratjax.config.data import schedule
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import check_data, check_model
from ratjax.config.overrides import changes, from_mapping, to_json
from ratjax.data import Rows
from ratjax.data.tokenizer import train_tokenizer
from ratjax.errors import ConfigError
from ratjax.model.parameters import abstract_parameters
from ratjax.needle import load_essays
from ratjax.needle.report import paper
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated
from ratjax.train.flops import PEAKS, step_flops
from ratjax.train.step import passes
from tests.launch.conftest import launch

__all__ = ["launch"]  # a fixture

# Steps, and whether the backbone has the memory.
RUNS = {
    "olmo2_7b_memory": (3178, True),
    "olmo2_7b_control": (3178, False),
    "olmo2_7b_control:dense": (3178, False),
    "olmo2_7b_sft": (2248, True),
    "olmo2_7b_sft:attention": (2248, False),
    "olmo2_7b_sft:control": (2248, False),
    "olmo2_1b_memory": (4768, True),
    "olmo2_1b_control": (4768, False),
    "ratplus_1b_scratch": (52452, True),
    "ratplus_1b_adapt": (476, True),
    "ratplus_1b_sft": (2248, True),
}
FILES = sorted({name.split(":")[0] for name in RUNS})
EXPERIMENTS = pathlib.Path(recipes.__file__).parent


def module(name):
    return importlib.import_module(f"experiments.{name.split(':')[0]}")


def experiment(name):
    variant = name.partition(":")[2]
    made = module(name).get_config(*([variant] if variant else []))
    return from_mapping(Experiment, made)


def passes_of(made):
    (stage,) = made.data.stages
    return [pattern for step in passes(made.train, stage.recurrence) for pattern in step.values()]


def test_every_file_is_tested():
    here = {path.stem for path in EXPERIMENTS.glob("*.py")} - {"__init__"}
    # the quickstart has tests of its own
    assert here - {"quickstart", "recipes"} == set(FILES)


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_needs_neither_weights_nor_data(launch, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file, colon, variant = name.partition(":")

    def define():
        command.define_config()
        command.define_workdir("a folder")
        command.define_dry_run()
        processes.define()

    status, out, err = launch(
        launch_train.main,
        define,
        f"--config={EXPERIMENTS}/{file}.py{colon}{variant}",
        f"--workdir={tmp_path}/run",
        "--dry_run",
    )
    assert status == 0, err
    steps, memory = RUNS[name]
    done, made = json.loads(out[-1]), experiment(name)
    assert (done["steps"], done["backbone"]) == (steps, "memory" if memory else "attention")
    assert done["tokens"] == steps * made.data.stages[0].batch_size * 4096
    missing = {made.data.stages[0].sources[0][0], made.data.tokenizer, made.train.init_from}
    assert err and all(line.startswith("warning: ") for line in err)
    for path in missing - {""}:
        assert any(path in line for line in err), path
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", ["7b", "1b"])
def test_a_pair_differs_in_one_field(size):
    memory, control = (experiment(f"olmo2_{size}_{kind}") for kind in ("memory", "control"))
    assert list(changes(to_json(memory), to_json(control))) == [("backbone", "memory", "attention")]
    # and so do the models: the memory, which the control's has not
    models = (made.model_config(made.backbone) for made in (memory, control))
    differing = {path.split(".")[0] for path, _, _ in changes(*map(to_json, models))}
    assert differing == {"memory"}


@pytest.mark.parametrize("size", ["7b", "1b"])
def test_the_control_without_a_sparse_pass(size):
    matched, dense = (experiment(f"olmo2_{size}_control{v}") for v in ("", ":dense"))
    assert list(changes(to_json(matched), to_json(dense))) == [
        ("data.stages[0].recurrence", "two_step", "off")
    ]


def test_the_papers_recipe():
    """A.1 of the paper; RAT+'s where it is silent."""
    made = experiment("olmo2_7b_memory")
    (stage,), train = made.data.stages, made.train
    assert (stage.batch_size, stage.sequence_length) == (768, 4096)
    assert (train.memory_learning_rate, train.learning_rate) == (6e-4, 6e-5)
    assert (train.warmup, train.weight_decay) == (0.02, 0.1)
    assert (train.beta1, train.beta2, train.clip_norm) == (0.9, 0.95, 1.0)
    assert (train.end_learning_rate, train.seed) == (1e-6, 1005)
    assert passes_of(made) == [Dilated(64), Dense()]
    assert made.memory.init == "near_identity"
    assert 9.99e9 < stage.tokens_per_step * stage.steps <= 1e10


def test_rat_plus_recipes():
    """The released configs (wimh966/rat-plus)."""
    scratch = experiment("ratplus_1b_scratch")
    assert (scratch.train.learning_rate, scratch.train.warmup) == (8e-4, 0.05)
    assert scratch.train.peak_memory_learning_rate == 8e-4
    assert (scratch.memory.init, scratch.memory.gate_bias) == ("normal", False)
    assert scratch.train.init_from == "" and passes_of(scratch) == [Dilated(64), Dense()]
    adapt = experiment("ratplus_1b_adapt")
    assert (adapt.train.learning_rate, adapt.train.warmup) == (8e-5, 0.0)
    assert passes_of(adapt) == [Dilated(16, 0, 4)]
    for name in ("olmo2_7b_sft", "ratplus_1b_sft"):
        tune = experiment(name)
        assert (tune.train.learning_rate, tune.train.warmup) == (1e-5, 0.05)
        assert (tune.train.weight_decay, tune.data.stages[0].batch_size) == (0.01, 32)
        assert passes_of(tune) == [Dense()]


def test_variants_of_the_fine_tuning_start_where_they_should():
    starts = {
        name: experiment(f"olmo2_7b_sft:{name}").train.init_from
        for name in ("memory", "attention", "control")
    }
    assert starts == {
        "memory": "models/olmo2_7b_memory",
        "attention": "models/olmo2_7b",
        "control": "models/olmo2_7b_control",
    }


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32, 64])
def test_batches_fit_meshes_by_changing_nothing(name, devices):
    made = experiment(name)
    (stage,) = made.data.stages
    if devices <= stage.batch_size:
        check_mesh(made, devices)
    else:
        with pytest.raises(ConfigError, match="leaves 32 sequences"):
            check_mesh(made, devices)


def check_mesh(made, devices):
    mesh = made.mesh.resolve(devices)
    check_model(mesh, made.model)
    check_data(mesh, made.train, made.data)


def flops(made):
    (span,) = schedule(made.train, made.data)
    stage, model = span.stage, made.model_config(made.backbone)
    once = step_flops(model, passes_of(made), stage.sequence_length, stage.batch_size)
    return once * span.stop


@pytest.mark.parametrize("name", FILES)
def test_headers_state_what_the_formula_gives(name):
    header, made = module(name).__doc__, experiment(name)
    (line,) = re.findall(r"^Compute: (.*)$", header, re.MULTILINE)
    total = flops(made)
    assert line.startswith(f"{float(f'{total:.3g}'):g} FLOPs; at 40 % MFU ")
    times = re.findall(r"([\d.]+) hours on (\d+) (?:chips of )?(\w+)", line)
    assert times
    for hours, devices, kind in times:
        peak = CHIPS[kind].peak_flops if kind in CHIPS else PEAKS[kind]
        assert float(hours) == round(total / (0.4 * peak * int(devices)) / 3600, 1), kind
        check_mesh(made, int(devices))

    sizes = abstract_parameters(made.model_config(made.backbone)).values()
    parameters = sum(array.size for array in sizes)
    (state, billions) = re.findall(
        r"^State: ([\d.]+) GiB in all, of ([\d.]+) billion parameters\.", header, re.MULTILINE
    )[0]
    # float32: the parameter and AdamW's two moments
    assert float(state) == round(parameters * 12 / 2**30, 1)
    assert float(billions) == float(f"{parameters / 1e9:.3g}")
    assert re.search(r"^Result", header, re.MULTILINE)
    assert f"experiments/{name}.py" in header


@pytest.mark.parametrize(
    ("name", "backbone"), [("olmo2_7b_memory", "memory"), ("olmo2_7b_control", "attention")]
)
def test_headers_quote_the_paper_rightly(name, backbone):
    header = " ".join(module(name).__doc__.split())
    for method, called in (("quest", "Quest"), ("moba", "MoBA"), ("snapkv", "SnapKV")):
        quoted = re.search(rf"{called} (\d+\.\d\d) (\d+\.\d\d) (\d+\.\d\d)\b", header)
        means = {
            row["budget"]: statistics.fmean(row["scores"].values())
            for row in paper._data()["rows"]
            if (row["checkpoints"], row["backbone"], row["method"], row["selector"])
            == ("olmo2_7b", backbone, method, "original")
            and row["block_size"] in (64, None)
        }
        wanted = [f"{means[budget]:.2f}" for budget in ("1/4", "1/8", "1/16")]
        assert quoted and list(quoted.groups()) == wanted, method


def test_the_needle_rows_are_made_once(tmp_path, monkeypatch):
    """Short ones, with a small tokenizer."""
    monkeypatch.chdir(tmp_path)
    essays = load_essays(None)
    tokenizer = train_tokenizer([essays.text[:200_000]], 1024)
    path = tmp_path / "models" / "olmo2_7b" / "tokenizer.json"
    path.parent.mkdir(parents=True)
    path.write_text(tokenizer.to_str())
    made = experiment("olmo2_7b_sft")
    (stage,) = made.data.stages
    stage = dataclasses.replace(stage, sequence_length=1024)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, stages=(stage,)))
    prepare = command.resolve(made.data.prepare)
    monkeypatch.setattr(recipes, "ROWS_A_TASK", 2)
    prepare(made)
    rows = Rows("data/needles", 1024)
    assert len(rows) == 2 * 8
    before = (tmp_path / "data" / "needles" / "index.json").stat().st_mtime_ns
    prepare(made)
    assert (tmp_path / "data" / "needles" / "index.json").stat().st_mtime_ns == before
    index = json.loads((tmp_path / "data" / "needles" / "index.json").read_text())
    assert index["seed"] == recipes.NEEDLE_SEED != made.needle.seed
    assert set(index["tasks"].values()) == {2} and len(index["tasks"]) == 8
