"""The queue of the study's runs: with processes that only pretend, and once with real ones."""

import json
import os
import signal
import threading
import time

import pytest

from docs.study import collect, stored, tables
from experiments.study import main as main_runs
from experiments.study.runs import Run
from launch import command
from launch import study as launch_study
from launch.study_queue import Job, Queue
from ratjax.config.overrides import to_json
from ratjax.needle import load_essays
from ratjax.train import watch

# A pair so small that two cores train it in seconds.
TINY = """
import dataclasses

from experiments.study.recipe import Recipe, experiment, main_needle
from experiments.study.runs import Run, config_of
from ratjax.config.needle import Setting

MODEL = dict(
    vocab_size=1024, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8,
    intermediate_size=16, unroll=1, dtype="float32",
)

def run(backbone, seed):
    recipe = Recipe(steps={steps}, rows=16, curriculum="full", folder=r"{folder}/data")
    needle = dataclasses.replace(
        main_needle(), tasks=("niah_single_2", "niah_multivalue"), methods=("quest",),
        budgets=("1/4",), batch_size=4, tokens_to_generate=30,
        extra=(Setting("quest", 16, 16, "1/4", selector="random", selector_seed=0),),
    )
    name = f"{{backbone}}-seed{{seed}}"
    made = experiment(name, backbone, recipe, seed, 2, needle)
    stages = tuple(dataclasses.replace(s, batch_size=1) for s in made.data.stages)
    made = dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, **MODEL),
        data=dataclasses.replace(made.data, stages=stages),
        train=dataclasses.replace(
            made.train, log_every=1, held_out_every=0, gate_lengths=False
        ),
    )
    return Run("main", name, backbone, "nothing", made)

RUNS = tuple(run(backbone, 0) for backbone in {backbones})

def get_config(name):
    return config_of(RUNS, name)
"""


class Process:
    """Ends by itself after some polls, or at once when it is told to; counts signals."""

    def __init__(self, effect, polls=1, status=0):
        self.effect, self.polls, self.status = effect, polls, status
        self.returncode, self.signals = None, []

    def poll(self):
        self.polls -= 1
        if self.returncode is None and self.polls < 0:
            self.effect()
            self.returncode = self.status
        return self.returncode

    def send_signal(self, number):
        self.signals.append(number)
        self.returncode = 0

    def wait(self, timeout=None):
        return self.returncode


def job(folder, name, steps):
    run = next(r for r in main_runs.RUNS if r.name == "attention-seed0")
    made = Job(Run(run.study, name, run.arm, run.differs, run.experiment), folder / name)
    made.__dict__.update(steps=steps, flops=float(steps))  # cached properties
    return made


def trained(one):
    return lambda: (one.folder / "model" / "checkpoints" / str(one.steps)).mkdir(parents=True)


def evaluated(one):
    def effect():
        meta = {"config": json.loads(json.dumps(to_json(one.run.experiment)))}
        one.results.parent.mkdir(parents=True)
        rows = [{"method": "dense", "score_strict": 50.0}]
        one.results.write_text(json.dumps({"meta": meta, "results": rows}))

    return effect


class Recorder:
    """Starts processes that pretend, and writes down which."""

    def __init__(self, failing=(), endless=()):
        self.started, self.failing, self.endless = [], failing, endless

    def __call__(self, one, phase, device):
        self.started.append((one.run.name, phase, device))
        one.folder.mkdir(parents=True, exist_ok=True)
        (one.folder / f"{phase}.log").write_text("begins\nerror: it is broken\n")
        if one.run.name in self.failing:
            return Process(lambda: None, 1, status=2)
        polls = 10**9 if one.run.name in self.endless else 1
        return Process({"train": trained, "evaluate": evaluated}[phase](one), polls)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("launch.study_queue.POLL_SECONDS", 0.001)


def states(queue):
    return {name: status["state"] for name, status in queue.status.items()}


def test_the_longest_comes_first_and_each_device_has_one_process(tmp_path, quick):
    jobs = [job(tmp_path, name, steps) for name, steps in (("a", 5), ("b", 20), ("c", 10))]
    start = Recorder()
    queue = Queue(jobs, tmp_path / "status.json", ["0", "1"], start, 1.0)
    assert queue.work(float("inf")) == []
    assert start.started[:2] == [("b", "train", "0"), ("c", "train", "1")]
    # what is trained is evaluated at once, where it was trained
    assert start.started.index(("b", "evaluate", "0")) < start.started.index(("a", "train", "0"))
    assert len(start.started) == 6 and set(states(queue).values()) == {"finished"}
    assert json.loads((tmp_path / "status.json").read_text())["runs"] == queue.status
    again = Queue(jobs, tmp_path / "status.json", ["0"], start, 1.0)
    assert again.work(float("inf")) == [] and len(start.started) == 6
    assert again.status["a"]["train_seconds"] == queue.status["a"]["train_seconds"] > 0
    assert "50.0" in launch_study.table(again)


def test_processes_that_share_a_device_have_their_part_of_its_time(tmp_path, quick):
    jobs = [job(tmp_path, name, steps) for name, steps in (("a", 5), ("b", 20), ("c", 10))]
    start = Recorder(endless=("b", "c"))
    queue = Queue(jobs, tmp_path / "status.json", ["0", "1", "0"], start, 1.0)
    began = time.monotonic()
    queue.work(began + 0.2)
    assert start.started[:3] == [("b", "train", "0"), ("c", "train", "1"), ("a", "train", "0")]
    seconds = {name: status["device_seconds"] for name, status in queue.status.items()}
    assert seconds["c"] == pytest.approx(seconds["a"] + seconds["b"], rel=0.05)
    assert sum(seconds.values()) <= 2 * (time.monotonic() - began)


def test_a_failure_is_one_line_and_stops_nothing_else(tmp_path, quick):
    jobs = [job(tmp_path, name, 5) for name in "ab"]
    queue = Queue(jobs, tmp_path / "status.json", [None], Recorder(failing=("a",)), 1.0)
    assert queue.work(float("inf")) == ["a: error: it is broken"]
    assert states(queue) == {"a": "failed", "b": "finished"}
    # the next session tries it again
    again = Queue(jobs, tmp_path / "status.json", [None], Recorder(), 1.0)
    assert again.work(float("inf")) == [] and set(states(again).values()) == {"finished"}
    assert again.status["a"]["starts"] == 3


def test_a_training_that_hung_goes_on_as_long_as_it_gets_further(tmp_path, quick):
    one, saved = job(tmp_path, "a", 5), iter((2, 4, 4))

    def start(job, phase, device):
        log = job.folder / f"{phase}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("error: no progress for 300 s")
        checkpoints = job.folder / "model" / "checkpoints"
        return Process(
            lambda: (checkpoints / str(next(saved))).mkdir(parents=True, exist_ok=True),
            status=watch.STATUS,
        )

    queue = Queue([one], tmp_path / "status.json", [None], start, 1.0)
    assert queue.work(float("inf")) == ["a: error: no progress for 300 s"]
    assert queue.status["a"]["starts"] == 3 and states(queue) == {"a": "failed"}


def test_when_the_time_is_over_all_is_told_to_end(tmp_path, quick):
    jobs = [job(tmp_path, name, 5) for name in "abc"]
    start = Recorder(endless=("a", "b"))
    queue = Queue(jobs, tmp_path / "status.json", ["0", "1"], start, 1.0)
    assert queue.work(time.monotonic() + 0.05) == []
    assert states(queue) == {"a": "stopped", "b": "stopped", "c": "waiting"}
    assert [name for name, *_ in start.started] == ["a", "b"]


def test_a_process_that_does_not_end_is_killed(tmp_path, quick):
    import subprocess

    class Deaf(Process):
        def send_signal(self, number):
            self.signals.append(number)

        def wait(self, timeout=None):
            if self.returncode is None and timeout is not None:
                raise subprocess.TimeoutExpired("deaf", timeout)

        def kill(self):
            self.returncode = -9

    made = Deaf(lambda: None, 10**9)
    one = job(tmp_path, "a", 5)
    queue = Queue([one], tmp_path / "status.json", [None], lambda *_: made, 0.01)
    assert queue.work(time.monotonic() + 0.02) == []
    assert made.signals == [signal.SIGTERM] and states(queue) == {"a": "stopped"}


@pytest.fixture
def study(launch):
    return lambda *arguments: launch(launch_study.main, launch_study.define, *arguments)


def tiny(tmp_path, steps=3, backbones=("attention", "memory")):
    path = tmp_path / "tiny.py"
    path.write_text(TINY.format(steps=steps, folder=tmp_path, backbones=backbones))
    return path


def test_what_is_wrong_is_said_in_a_line(study, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(launch_study, "_gpus", list)
    path = tiny(tmp_path)
    where = f"--workdir={tmp_path}/runs"
    for flags, said in (
        ((f"--config={path}", where, "--only=nothing*"), "matches no run"),
        ((f"--config={path}", where, "--devices=2"), "has no GPU"),
        ((f"--config={path}", where, "--minutes=-1"), "must be above 0"),
        ((f"--config={tmp_path}/no.py", where), "no such file"),
    ):
        status, _, err = study(*flags)
        assert status == 2 and len(err) == 1 and said in err[0], flags
    status, out, _ = study(f"--config={path}", where, "--dry_run", "--only=mem*")
    assert status == 0 and json.loads(out[-1]) == {"runs": 1, "devices": 1}
    assert not (tmp_path / "runs").exists()


def test_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.setattr(launch_study, "_gpus", lambda: ["0", "1", "2"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch_study.visible_devices(0) == ["0", "1", "2"]
    assert launch_study.visible_devices(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert launch_study.visible_devices(0) == ["5", "7"]
    with pytest.raises(command.InputError, match="this machine has 2"):
        launch_study.visible_devices(3)


@pytest.mark.slow
def test_the_whole_way_with_an_interruption(study, tmp_path, monkeypatch):
    """Two tiny runs, the first one stopped in training; then collected, and put into tables."""
    if load_essays(None).n_words < 10_000:
        pytest.skip("the short text that is shipped has no 1024 tokens to hold out")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(launch_study, "visible_devices", lambda wanted: [None])
    path, work = tiny(tmp_path, steps=40), tmp_path / "runs"
    metrics = work / "memory-seed0" / "model" / "metrics.jsonl"

    def interrupt():
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    status, out, err = study(f"--config={path}", f"--workdir={work}")
    assert (status, err) == (0, []) and not waiting.is_alive()
    found = json.loads((work / "status.json").read_text())["runs"]
    assert {name: one["state"] for name, one in found.items()} == {
        "attention-seed0": "waiting",
        "memory-seed0": "stopped",
    }
    assert "stopped by a signal" in (work / "memory-seed0" / "train.log").read_text()

    status, out, err = study(f"--config={path}", f"--workdir={work}")
    assert (status, err) == (0, []), (work / "memory-seed0" / "train.log").read_text()[-2000:]
    assert "resuming from step" in (work / "memory-seed0" / "train.log").read_text()
    assert sum("finished" in line for line in out) == 2

    target = tmp_path / "results"
    assert collect.main([f"--config={path}", f"--workdir={work}", f"--target={target}"]) == 0
    runs = stored.read_all(target)
    assert [run.arm for run in runs] == ["attention", "memory"]
    for run in runs:
        assert {r.run for r in run.results} == {"main"} and len(run.results) == 3 * 2
        assert run.meta["training"]["loss"][-1][0] == 40 and run.held_out_loss() > 0
        assert run.meta["compute"]["gpu_seconds"] > 0
        assert len(run.hits) == 2 * 2
    assert runs[0].meta["prompts"] == runs[1].meta["prompts"]
    text = tmp_path / "README.md"
    text.write_text("<!-- begin:same_data -->\n<!-- end:same_data -->\n")
    assert tables.main([f"--results={target}", f"--text={text}"]) == 0
    assert "memory minus attention" in text.read_text()
    assert (tmp_path / "losses.svg").exists() and (tmp_path / "curves_mean.png").exists()

    # finished as it was: with another learning rate it would have to run again
    path.write_text(path.read_text().replace("Recipe(", "Recipe(learning_rate=2e-3, "))
    status, _, err = study(f"--config={path}", f"--workdir={work}")
    assert status == 2 and "train.learning_rate=0.001, now it is 0.002" in err[0]
