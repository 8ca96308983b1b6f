"""The study's runs, data, and the tables made of what is stored of them."""

import dataclasses
import json
import pathlib
import re
import statistics
import types

import jax
import numpy as np
import pytest

from docs.study import claims, stored, tables
from docs.study.blocks import BLOCKS
from docs.study.choice import choose
from docs.study.study import NOT_RUN, Study
from experiments.study import data, main, recipe, tuning
from experiments.study.runs import flops, optimizer_steps, pick, steps, with_compute_of
from ratjax.config.data import schedule
from ratjax.config.experiment import Experiment
from ratjax.config.needle import TASKS
from ratjax.config.overrides import changes, from_mapping, to_json
from ratjax.data import Batches
from ratjax.errors import ConfigError, InputError
from ratjax.model.parameters import abstract_parameters, initial_parameters
from ratjax.needle.report.records import Setting
from ratjax.needle.settings import identity, pattern_of
from ratjax.needle.statistics import Estimate
from ratjax.train.flops import step_flops
from ratjax.train.step import passes

RUNS = (*tuning.RUNS, *main.RUNS)
# Where a knob of `Recipe` stands in an experiment. A changed mixture changes all of its folders.
FIELDS = {
    "learning_rate": r"train\.learning_rate",
    "memory_learning_rate": r"train\.memory_learning_rate",
    "memory": r"memory\..*",
    "recurrence": r"data\.stages\[0\]\.recurrence",
    "curriculum": r"data\.stages",
    "questions": r"data\.stages\[\d\]\.sources\[\d+\]\[0\]",
    "text": r"data\.stages\[\d\]\.sources\[\d+\]\[1\]",
}


def differing(one, other):
    return [path for path, _, _ in changes(to_json(one), to_json(other)) if path != "name"]


@pytest.mark.parametrize("listed", [tuning, main])
def test_every_run_builds_and_is_found_by_its_name(listed):
    names = [run.name for run in listed.RUNS]
    assert len(set(names)) == len(names) and not any(set(":/*?") & set(name) for name in names)
    for run in listed.RUNS:
        made = from_mapping(Experiment, listed.get_config(run.name))
        assert made == run.experiment and made.name == run.name
        for folder in {folder for stage in made.data.stages for folder, _ in stage.sources}:
            if not folder.endswith("/text"):
                assert data.parts_of(folder)[1]
    with pytest.raises(ConfigError, match=r"did you mean|known"):
        pick(listed.RUNS, "atention")


def test_the_backbones_have_the_same_tuning_budget():
    for number, runs in {1: 8, 2: 6}.items():
        tried = {b: tuning.TRIED[number, b] for b in ("attention", "memory")}
        assert len(tried["attention"]) == len(tried["memory"]) == runs
    # `fields_of` finds a run without its round.
    assert len({(run.arm, run.differs) for run in tuning.RUNS}) == len(tuning.RUNS) == 2 * (8 + 6)
    assert {steps(run.experiment) for run in tuning.RUNS} == {recipe.Recipe().steps}
    assert {run.experiment.samples for run in tuning.RUNS} == {tuning.SAMPLES}


def test_a_tuning_run_differs_from_the_base_in_what_its_name_says():
    bases = {run.arm: run.experiment for run in tuning.RUNS if run.differs == "base"}
    assert differing(*bases.values()) == ["backbone"]
    for run in tuning.RUNS:
        fields = tuning.fields_of(run.arm, run.differs)
        allowed = re.compile("|".join(FIELDS[field] for field in fields) or "nothing")
        found = differing(bases[run.arm], run.experiment)
        assert all(allowed.fullmatch(path) for path in found), (run.name, found)
        for field in fields:
            assert any(re.fullmatch(FIELDS[field], path) for path in found), (run.name, field)


def test_recipes_are_chosen_without_sparse_scores_or_the_main_prompts():
    for run in tuning.RUNS:
        assert [s.method for s in run.experiment.needle.settings()] == ["dense"]
    seeds = {run.study: run.experiment.needle.seed for run in RUNS}
    assert len(set(seeds.values())) == 2
    jobs = data._shards(data.Folders("x", 96_000, 8).needles(1024)[0], "x")
    assert not {job.seed for job in jobs} & set(seeds.values())
    assert len({job.seed for job in jobs}) == len(jobs)
    assert not {run.experiment.train.seed for run in tuning.RUNS} & set(main.SEEDS)


def tried(differs, dense, loss):
    meta = {"run": "tuning", "arm": "attention", "differs": differs}
    meta["training"] = {"held_out": [[1, 9.0], [5, loss]]}
    cell = {"score_strict": dense, "task": "niah_single_1"}
    setting = types.SimpleNamespace(is_dense=True)
    return stored.Stored(None, meta, (types.SimpleNamespace(setting=setting, **cell),), ())


def test_the_rule_takes_the_best_at_text_of_those_good_at_needles():
    assert choose([], "attention") is None
    runs = [
        tried("text_0.2", 99.0, 2.3),
        tried("text_0.2-lr_5e-4", 99.9, 2.4),
        tried("text_0.2-lr_2e-3", 98.8, 2.2),  # more than a point behind
        tried("base", 100.0, 2.1),  # on other data, as are the next
        tried("questions_1", 100.0, 2.1),
    ]
    assert choose(runs, "attention") is runs[0] and choose(runs, "memory") is None


def test_the_main_runs_have_the_recipes_that_were_chosen():
    runs = stored.read_all(stored.FOLDER)
    if not any(run.meta["run"] == "main" for run in runs):
        pytest.skip("no main run is stored, so that the choice is still open")
    for backbone, name in main.CHOSEN.items():
        assert choose(runs, backbone).meta["differs"] == name


def arms(seed):
    return {run.arm: run.experiment for run in main.RUNS if run.experiment.train.seed == seed}


@pytest.mark.parametrize("seed", main.SEEDS)
def test_the_main_pair_differs_in_the_memory_and_what_the_file_says(seed):
    found = arms(seed)
    paths = differing(found["attention"], found["memory"])
    assert paths[0] == "backbone" or "backbone" in paths
    allowed = re.compile("|".join(FIELDS[field] for field in main.DIFFERS) or "nothing")
    own = FIELDS["recurrence"] if main.RECIPE.recurrence != "off" else "nothing"
    for path in paths:
        assert path == "backbone" or allowed.fullmatch(path) or re.fullmatch(own, path), path
    assert differing(found["attention"], found["attention_matched"]) == [
        f"data.stages[{len(found['attention'].data.stages) - 1}].steps"
    ]


@pytest.mark.parametrize("seed", main.SEEDS)
def test_the_published_arm_has_the_papers_gate_and_schedule(seed):
    found = arms(seed)
    paths = differing(found["attention"], found["memory_published"])
    allowed = [FIELDS[field] for field in ("memory", "recurrence", "learning_rate")]
    assert all(re.fullmatch("|".join(["backbone", *allowed]), path) for path in paths), paths
    own = found["memory_published"]
    gate = own.memory
    assert (gate.init, gate.gate_bias, gate.gate_input) == ("normal", False, "raw")
    assert [stage.recurrence for stage in own.data.stages] == ["two_step", "off", "off"]


def by_hand(made):
    """All operations, from the formula for one step alone."""
    model, total = made.model_config(made.backbone), 0.0
    for stage in made.data.stages:
        for one in passes(made.train, stage.recurrence):
            for pattern in one.values():
                size = stage.sequence_length, stage.batch_size
                total += stage.steps * step_flops(model, [pattern], *size)
    return total


@pytest.mark.parametrize("recurrence", ["off", "two_step"])
def test_matched_attention_has_the_memorys_compute(recurrence):
    found = arms(0)
    (first, *others) = found["memory"].data.stages
    first = dataclasses.replace(first, recurrence=recurrence)
    its_data = dataclasses.replace(found["memory"].data, stages=(first, *others))
    memory = dataclasses.replace(found["memory"], data=its_data)
    matched = with_compute_of(found["attention"], memory)
    assert flops(memory) == pytest.approx(by_hand(memory), rel=1e-12)
    last = matched.data.stages[-1]
    a_step = step_flops(
        matched.model, [pattern_of(matched.needle.settings()[0])], 1024, last.batch_size
    )
    assert flops(matched) >= flops(memory) and optimizer_steps(matched) >= optimizer_steps(memory)
    # and no more than one step more than is needed for the dearer of the two
    spare = (flops(matched) - flops(memory)) / a_step
    assert spare < 1 or optimizer_steps(matched) == optimizer_steps(memory)
    assert steps(memory) == steps(found["attention"])  # so the pair sees the same batches


def test_shared_parameters_start_the_same():
    made = arms(1)
    small = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 2}
    small |= {"head_dim": 16, "intermediate_size": 32, "num_layers": 1}
    starts = {}
    for arm in ("attention", "memory"):  # the matched arm's model is attention's
        one = made[arm]
        model = dataclasses.replace(one.model_config(one.backbone), **small)
        starts[arm] = initial_parameters(model)(jax.random.key(one.train.seed))
    assert set(starts["attention"]) < set(starts["memory"])
    for name, array in starts["attention"].items():
        np.testing.assert_array_equal(array, starts["memory"][name])
    assert made["attention"].model == made["attention_matched"].model


def test_the_models_are_as_large_as_the_text_says():
    counts = {}
    for backbone in ("attention", "memory"):
        sizes = abstract_parameters(arms(0)[backbone].model_config(backbone)).values()
        counts[backbone] = sum(array.size for array in sizes)
    assert [round(count / 1e6) for count in counts.values()] == [23, 25]
    text = pathlib.Path(tables.__file__).with_name("README.md").read_text()
    assert "23M parameters" in text and "25M" in text


def test_main_settings():
    needle = main.RUNS[0].experiment.needle
    found = [identity(setting) for setting in needle.settings()]
    assert len(found) == 1 + 3 * 3 + 3 * 5 and needle.hit_rates and needle.tasks == TASKS
    assert main.SAMPLES == 500 and len(main.SEEDS) == 3 and needle.context_length == 1024
    own = {(s["method"], s["budget"]): s for s in found if s["selector"] == "original"}
    assert {budget for _, budget in own} == {"1", "1/4", "1/8", "1/16"}
    for drawn in (s for s in found if s["selector"] == "random"):
        same = own[drawn["method"], "1/4"]
        assert [drawn[f] for f in ("block_size", "k")] == [same[f] for f in ("block_size", "k")]
    patterns = {s.method: pattern_of(s) for s in needle.settings() if s.budget == "1/4"}
    assert (patterns["quest"].page_size, patterns["quest"].pages) == (16, 16)
    assert (patterns["snapkv"].window, patterns["snapkv"].capacity) == (16, 256)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data of a run with few rows, and with the study's own tokenizer."""
    root = tmp_path_factory.mktemp("study")
    small = recipe.Recipe(steps=10, rows=24, folder=str(root))
    made = recipe.experiment("small", "attention", small, 3, 2, recipe.tuning_needle())
    data.prepare(made)
    return root, made


def test_data_is_made_once_and_fits_every_stage(prepared):
    root, made = prepared
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    data.prepare(made)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    batches = Batches(schedule(made.train, made.data), made.train.seed, made.model.vocab_size)
    for span in batches.spans:
        batch = batches[span.start]
        stage = span.stage
        assert batch.tokens.shape == (stage.batch_size, stage.sequence_length)
        assert batch.mask.any(1).all()  # every record teaches something
    full = json.loads((root / "niah_multikey_2-1024-3-q8" / "index.json").read_text())
    assert full["rows"] == 3 and full["parts"][0]["questions"] == 8
    drills = json.loads((root / "drills-256-12" / "index.json").read_text())
    assert drills["tasks"] == {"drill": 12} and len(set(drills["seed"])) == 3


def test_more_questions_teach_more_of_the_same_context(prepared):
    root, _ = prepared
    targets = {}
    for questions in (1, 8):
        folder = data.Folders(str(root), 24, questions).needles(1024)[4]
        (job,) = data._shards(folder, str(root / "tokenizer.json"))
        targets[questions] = data._make(job, print).loss_mask.sum(1).mean()
    assert targets[8] > 6 * targets[1]


def test_matched_attention_trains_on_the_same_batches_first(prepared):
    """Up to the end of the shorter run, whatever is added."""
    _, made = prepared
    memory = dataclasses.replace(made, backbone="memory")
    longer = with_compute_of(made, memory)
    assert steps(longer) > steps(made)
    both = [Batches(schedule(m.train, m.data), m.train.seed, 4096) for m in (made, longer)]
    for step in (0, steps(made) - 1):
        for one, other in zip(both[0][step], both[1][step], strict=True):
            np.testing.assert_array_equal(one, other)


def test_unknown_folders_are_refused():
    with pytest.raises(InputError, match="not a folder of the study's"):
        data.parts_of("runs/study/data/needles")


@pytest.mark.slow
def test_processes_make_the_rows_that_one_would(prepared, tmp_path, monkeypatch):
    root, _ = prepared
    jobs = data._shards(data.Folders(str(root), 24, 8).needles(1024)[0], f"{root}/tokenizer.json")
    alone = [data._make(job, print) for job in jobs]
    monkeypatch.setattr(data, "SHARD", 1)
    several = [rows for _, rows in sorted(data._made(jobs))]
    for one, other in zip(alone, several, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.loss_mask, other.loss_mask)


# What is stored, and tables of it. Scores are drawn: they are no results.

PROMPTS = 24


def document(study, arm, seed, right, differs=""):
    """A run whose prompts are answered with chance `right(setting)`."""
    experiment = main.RUNS[0].experiment
    rng = np.random.default_rng([seed, len(arm), study == "main"])
    settings = [s for s in experiment.needle.settings() if s.selector_seed in (0, 1)]
    rows, hits = [], []
    for setting in settings if study == "main" else settings[:1]:
        for task in TASKS:
            scores = (rng.random(PROMPTS) < right(setting)).astype(float)
            mean = round(100 * scores.mean(), 2)
            named = {
                "run": study,
                "backbone": arm,
                "train_seed": seed,
                "context_length": 1024,
                **identity(setting),
                "task": task,
            }
            rows.append(
                {
                    **named,
                    "score_strict": mean,
                    "score_ruler": mean,
                    "samples": PROMPTS,
                    "ci95": [0.0, 100.0],
                    "kv_read_fraction": 0.5,
                    "scores": stored.pack(scores),
                }
            )
            if setting.method in ("quest", "snapkv"):
                given = {"prompts": PROMPTS, "score_strict": 50.0}
                best = 0.9 if arm.startswith("memory") else 0.7
                top = [[rate, 0, 0] for rate in (best, 0.3)]
                hits.append(
                    {**named, "top": top, "best": 1, "given_hit": given, "given_miss": given}
                )
    meta = {
        "run": study,
        "name": f"{arm}-{differs}-seed{seed}",
        "arm": arm,
        "differs": differs,
        "train_seed": seed,
        "device": "none",
        "prompts": dict.fromkeys(TASKS, "the same"),
        "training": {
            "steps": 5,
            "loss": [[1, 9.0], [5, 2.0]],
            "held_out": [[5, 3.0 + seed]],
            "gate_lengths": [1.0 + seed, 64.0] if arm.startswith("memory") else None,
        },
        "compute": {"gpu_seconds": 60.0, "train_flops": 1e12},
    }
    return {"meta": meta, "results": rows, "hits": hits, "timing": []}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    documents = [
        document("tuning", arm, 100, lambda _: 0.5, differs)
        for arm in ("attention", "memory")
        for differs in ("base", "text_0.2")
    ]
    chances = {"attention": 0.3, "attention_matched": 0.5, "memory": 0.9, "memory_published": 0.7}
    for arm, chance in chances.items():
        for seed in main.SEEDS:
            documents.append(
                document("main", arm, seed, lambda s, c=chance: 1.0 if s.method == "dense" else c)
            )
    for number, each in enumerate(documents):
        (folder / f"{number:02}.json").write_text(json.dumps(each))
    return folder


def test_scores_are_kept_to_the_prompt():
    scores = [0.0, 1 / 4, 1 / 3, 2 / 3, 1.0]
    assert stored.unpack(stored.pack(scores)) == pytest.approx(scores, abs=1e-15)
    assert len(stored.pack(scores)) == len(scores)
    with pytest.raises(InputError, match=r"0\.2"):
        stored.pack([0.2])


def test_predictions_average_to_the_cells_score(made_up):
    for run in stored.read_all(made_up):
        predictions = run.predictions()
        for result in run.results:
            mean = 100 * statistics.fmean(predictions[result.key].strict.values())
            assert mean == pytest.approx(result.score_strict, abs=0.01)


def test_tables_tell_the_arms_apart(made_up):
    study = Study(tuple(stored.read_all(made_up)))
    found = {name: block(study) for name, block in BLOCKS.items()}
    assert NOT_RUN not in found.values()
    # memory minus attention is 60 points where neither is dense, memory minus matched 40
    for name, low, high in (
        ("same_data", 55, 65),
        ("same_compute", 35, 45),
        ("published", 35, 45),
        ("published_compute", 15, 25),
    ):
        (row,) = [
            line
            for line in found[name].splitlines()
            if line.startswith("| Quest | 1/4 ") and "random" not in line
        ]
        points = float(re.search(r"\| \**\+([\d.]+)\**(?: \[|\*)", row)[1])
        assert low < points < high, row
    assert "| attention_matched | memory | memory minus attention_matched" in found["same_compute"]
    assert "| attention | memory | memory minus attention " in found["same_data"]
    assert "| attention | memory_published | memory_published minus attention" in found["published"]
    assert found["learned"].count("8 of 8") == 4
    assert "| tuning | memory | none | 2 |" in found["compute"]
    assert found["chosen"] == "attention: `text_0.2`; memory: `text_0.2`"
    assert found["budget"] == "attention: 2 runs of 5 steps; memory: 2 runs of 5 steps"
    judged = [line for line in found["claims"].splitlines() if "Quest 1/4 |" in line]
    assert len(judged) == 4 and all("ahead" in line for line in judged)
    dense = [line for line in found["claims"].splitlines() if "Dense" in line]
    assert len(dense) == 4 and all("not told" in line for line in dense)
    # hit rates of the best head: 90 against 70
    assert "hit rate of the best heads | ahead | +20.0 [20.0, 20.0] |" in found["claims"]
    assert re.search(
        r"Quest \+[56]\d.* on the same data; Quest \+[34]\d.*of 36 .* 35 above zero and none",
        found["summary"],
    )
    assert "| memory_published | 2.0 (1.0 to 3.0) | 64.0 (64.0 to 64.0) |" in found["gates"]
    assert "attention" not in found["gates"]
    assert found["gpu_hours"] == f"{(4 + 12) / 60:.1f}"


def test_gains_are_judged_beside_the_papers():
    assert claims.paper_gains(Setting("quest", 16, 16, "1/2", "original")) == []
    gains = claims.paper_gains(Setting("snapkv", 1, 256, "1/4", "original"))
    assert len(gains) == 2 and max(gains) == pytest.approx(34.11, abs=0.01)  # as its text says
    for low, high, said in (
        (0.5, 2.0, "ahead; less than in the paper"),
        (-1.0, 2.0, "not told; less than in the paper"),
        (-1.0, 90.0, "not told"),
        (-2.0, -1.0, "behind; less than in the paper"),
    ):
        row = claims._judged("it", Estimate((low + high) / 2, low, high), gains)
        assert row[1].text == said
    assert claims._judged("it", None, [])[1].text == "not told"


@pytest.mark.slow
def test_one_command_fills_the_text_in(made_up, tmp_path, capsys):
    text = tmp_path / "README.md"
    blocks = "\n".join(f"<!-- begin:{name} -->\nbefore it\n<!-- end:{name} -->" for name in BLOCKS)
    text.write_text(f"# T\n{blocks}\nin <!-- begin:gpu_hours -->?<!-- end:gpu_hours --> hours")
    other = tmp_path / "other" / "README.md"
    other.parent.mkdir()
    other.write_text("in <!-- begin:gpu_hours -->?<!-- end:gpu_hours --> hours")
    flags = [f"--results={made_up}", "--text", str(text), str(other)]
    assert tables.main(flags) == 0
    assert ">0.3<" in other.read_text() and list(other.parent.iterdir()) == [other]
    once = text.read_text()
    assert "before it" not in once and once.endswith("-->0.3<!-- end:gpu_hours --> hours")
    drawn = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in (".png", ".svg")}
    assert set(drawn) == {"curves_mean.png", "curves.png", "losses.svg"}
    assert tables.main(flags) == 0 and text.read_text() == once
    assert {name: (tmp_path / name).read_bytes() for name in drawn} == drawn
    text.write_text("<!-- begin:score -->x<!-- end:score -->")
    assert tables.main(flags) == 2 and "did you mean" in capsys.readouterr().err


def test_the_published_text_is_that_of_the_stored_runs():
    text = pathlib.Path(tables.__file__).with_name("README.md").read_text()
    assert tables.fill(text, Study(tuple(stored.read_all(stored.FOLDER)))) == text
    assert set(re.findall(r"begin:(\w+)", text)) >= set(BLOCKS)
