"""RULER's own JSONL files as prompts: which task, which rows, which positions, and every error."""

import dataclasses
import json

import pytest

from ratjax.config.needle import NeedleConfig
from ratjax.config.presets import preset
from ratjax.errors import InputError
from ratjax.needle import TASKS, generate, report
from ratjax.needle.engine import build_prompts, evaluate, tasks_of
from ratjax.needle.files import read_prompts, tasks_in
from ratjax.needle.outputs import write_outputs
from tests.decoders import initial

NAMES = tuple(TASKS)
LENGTH = 640


@pytest.fixture(scope="module")
def drawn(tokenizer, essays):
    """Three rows of every task, as `generate` gives them."""
    return {
        name: generate(name, tokenizer, context_length=LENGTH, samples=3, seed=42, haystack=essays)
        for name in NAMES
    }


def as_ruler(row):
    """The same row with the fields that RULER's generator writes since 2025."""
    return {
        "index": row["index"],
        "input": row["input"],
        "outputs": row["outputs"],
        "length": row["length"] + 128,  # RULER counts in the answer's room
        "length_w_model_temp": row["length"] + 128,
        "answer_prefix": " The special magic number for it mentioned in the provided text is",
        "token_position_answer": 3,  # of another tokenizer
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(files, tokenizer, tasks=NAMES, samples=500, longest=LENGTH - 128):
    return read_prompts(str(files), tokenizer, tasks, samples, longest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, drawn):
    """Laid out as RULER does: a folder a task."""
    root = tmp_path_factory.mktemp("ruler")
    for name in NAMES:
        write(root / name / "validation.jsonl", map(as_ruler, drawn[name]))
    return root


def test_files_give_the_prompts_that_they_hold(folder, drawn, tokenizer):
    found = read(folder, tokenizer)
    assert tuple(found) == NAMES
    for name in NAMES:
        for (index, prompt), row in zip(found[name], drawn[name], strict=True):
            assert (index, prompt.task, prompt.text) == (row["index"], name, row["input"])
            assert [prompt.text[start:stop] for start, stop in prompt.spans] == row["outputs"]


def test_the_engine_runs_them_like_drawn_ones(folder, drawn, tokenizer, essays):
    """What it needs of a prompt is counted with the model's tokenizer, hit positions included."""
    config = {"context_length": LENGTH, "methods": (), "hit_rates": True}
    given = build_prompts(NeedleConfig(files=str(folder), **config), 2, tokenizer)
    assert tasks_of(given) == NAMES
    for prompt in given:
        row = drawn[prompt.row["task"]][prompt.row["index"]]
        assert {**row, "number": prompt.number} == prompt.row
        assert prompt.tokens.tolist() == tokenizer.encode(row["input"]).ids
        start, _ = row["answer_token_spans"][0]
        assert prompt.needed[0] == start
        assert len(prompt.answer) == len(prompt.needed)
    assert [prompt.number for prompt in given] == list(range(16))


@pytest.mark.parametrize(
    "name",
    [
        "niah_multikey_2.jsonl",
        "niah_multikey_2_4096.jsonl",
        "4k.niah_multikey_2.test.jsonl",
        "niah_multikey_2/4096/validation.jsonl",
        "niah_single_1/niah_multikey_2/validation.jsonl",  # the nearest folder
    ],
)
def test_the_task_is_in_the_name(name, drawn, tokenizer, tmp_path):
    path = write(tmp_path / name, map(as_ruler, drawn["niah_multikey_2"]))
    assert list(read(path, tokenizer)) == ["niah_multikey_2"]


def test_a_field_names_the_task_before_the_name_does(drawn, tokenizer, tmp_path):
    rows = [{**as_ruler(drawn[name][0]), "task": name} for name in NAMES]
    path = write(tmp_path / "niah_single_1.jsonl", rows)
    assert list(read(path, tokenizer)) == list(NAMES)


def test_patterns_and_wanted_tasks_choose(folder, tokenizer):
    found = read(folder / "niah_multi*" / "*.jsonl", tokenizer)
    assert list(found) == [name for name in NAMES if "multi" in name]
    wanted = ("niah_multiquery", "niah_single_2")
    assert tuple(read(folder, tokenizer, wanted)) == tasks_in(str(folder), wanted) == wanted


def test_the_lowest_indices_are_taken(drawn, tokenizer, tmp_path):
    rows = [{**as_ruler(drawn["niah_single_1"][0]), "index": i} for i in (7, 3, 5)]
    path = write(tmp_path / "niah_single_1.jsonl", rows)
    found = read(path, tokenizer, samples=2)
    assert [index for index, _ in found["niah_single_1"]] == [3, 5]


def test_files_from_before_2025_keep_their_answer_prefix(drawn, tokenizer, tmp_path):
    row = as_ruler(drawn["niah_single_1"][0])
    row["input"] += row.pop("answer_prefix")
    path = write(tmp_path / "niah_single_1.jsonl", [row])
    ((_, prompt),) = read(path, tokenizer, longest=LENGTH)["niah_single_1"]
    assert prompt.text.endswith("mentioned in the provided text is")


def test_an_answer_is_found_in_its_needle(drawn, tokenizer, tmp_path):
    row = as_ruler(drawn["niah_single_1"][0])
    (value,) = row["outputs"]
    row["input"] = f"Not here: {value}!\n" + row["input"]
    path = write(tmp_path / "niah_single_1.jsonl", [row])
    ((_, prompt),) = read(path, tokenizer, longest=LENGTH)["niah_single_1"]
    start, stop = prompt.spans[0]
    assert prompt.text[start - 5 : stop + 1] == f" is: {value}."


def without(field):
    return lambda row: {name: value for name, value in row.items() if name != field}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("input"), r"niah_single_1\.jsonl:2: field 'input' is missing"),
        (without("outputs"), r"niah_single_1\.jsonl:2: field 'outputs' is missing"),
        (without("index"), r"niah_single_1\.jsonl:2: field 'index' is missing"),
        (lambda row: {**row, "input": 5}, r":2: input=5 must be of type str"),
        (lambda row: {**row, "index": True}, r":2: index=True must be of type int"),
        (lambda row: {**row, "outputs": "1"}, r":2: outputs='1' must be of type list"),
        (lambda row: {**row, "outputs": []}, r":2: outputs=\[\] must be a list of answers"),
        (lambda row: {**row, "outputs": [7]}, r":2: outputs=\[7\] must be a list of answers"),
        (lambda row: {**row, "outputs": ["7x7"]}, r":2: the answer '7x7' is not in its input"),
        (lambda row: {**row, "task": "vt"}, r":2: task='vt': no such task"),
        (lambda row: {**row, "task": "niah_single_4"}, r"did you mean niah_single_"),
        (lambda row: {**row, "index": 0}, r":2: index=0 of niah_single_1 again, as in .*:1;"),
        (lambda row: {**row, "input": row["input"] * 3}, r":2: \d+ tokens .* leaves 512; raise"),
        (lambda row: [row], r":2: not an object"),
    ],
)
def test_errors_name_file_and_line(change, message, drawn, tokenizer, tmp_path):
    first, second, _ = map(as_ruler, drawn["niah_single_1"])
    path = write(tmp_path / "niah_single_1.jsonl", [first, change(second)])
    with pytest.raises(InputError, match=message) as caught:
        read(path, tokenizer)
    assert "\n" not in str(caught.value)


def test_errors_of_whole_files(drawn, tokenizer, tmp_path, folder):
    path = write(tmp_path / "answers.jsonl", [as_ruler(drawn["niah_single_1"][0])])
    with pytest.raises(InputError, match=r"answers\.jsonl:1: of no known task"):
        read(path, tokenizer)
    path.write_text('{"index": 0,')
    with pytest.raises(InputError, match=r"answers\.jsonl:1: not valid JSON"):
        read(path, tokenizer)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"answers\.jsonl: cannot be read as text"):
        read(path, tokenizer)
    with pytest.raises(InputError, match=r"needle\.files='.*none': no such file"):
        read(tmp_path / "none", tokenizer)
    with pytest.raises(InputError, match=r"no rows of niah_single_2; name files"):
        read(folder / "niah_single_1", tokenizer, ("niah_single_2",))


@pytest.mark.slow
def test_files_are_evaluated_like_the_same_prompts_drawn(tokenizer, tmp_path):
    """An evaluation's own prompts, read back: the same results, and a report of them."""
    shape = dataclasses.replace(preset("tiny"), vocab_size=tokenizer.get_vocab_size())
    model = initial(shape)
    tasks, labels = ("niah_single_1", "niah_multikey_2"), {"run": "r", "backbone": "attention"}
    config = NeedleConfig(
        tasks=tasks, context_length=256, tokens_to_generate=8, methods=(), batch_size=4
    )
    by_drawing = evaluate(model, tokenizer, config, 3, {**labels, "train_seed": 0})
    for task in tasks:
        found = (row for row in by_drawing.prompts if row["task"] == task)
        write(tmp_path / "ruler" / task / "validation.jsonl", found)
    config = dataclasses.replace(config, files=str(tmp_path / "ruler"))
    by_reading = evaluate(model, tokenizer, config, 3, {**labels, "train_seed": 0})
    assert by_reading.results == by_drawing.results
    assert by_reading.predictions == by_drawing.predictions
    assert by_reading.prompts == by_drawing.prompts
    write_outputs(tmp_path / "run", {}, [by_reading], {})
    page = report.build([tmp_path / "run"], tmp_path / "report")
    assert "Only attention was evaluated" in page.read_text()
