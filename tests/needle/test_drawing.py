"""Prompts as a caller gets them: fields, counts, lengths, positions, repeatability, errors."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ratjax.errors import InputError
from ratjax.needle import TASKS, Essays, Task, generate, wording
from ratjax.needle.drawing import draw_prompts

PATTERN = {
    "numbers": r"[1-9]\d{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    # One adjective, "ad hoc", has a space in it.
    "words": r"(?:ad )?[A-Za-z-]+",
}


def draw(task, tokenizer, essays, **changes):
    arguments = {"context_length": 640, "samples": 6, "seed": 42} | changes
    return generate(task, tokenizer, haystack=essays, **arguments)


@pytest.mark.parametrize("name", TASKS)
def test_rows_hold_what_the_task_says(name, tokenizer, essays):
    task = TASKS[name]
    key, value = PATTERN[task.key_type], PATTERN[task.value_type]
    needle = re.compile(rf"One of the special magic {task.value_type} for ({key}) is: ({value})\.")
    lines = 0
    for index, row in enumerate(draw(name, tokenizer, essays)):
        assert row["task"] == name and row["index"] == index
        opening, question = (
            wording.opening(task.value_type, task.singular),
            row["input"][row["input"].rindex("\n") :],
        )
        assert row["input"].startswith(opening)
        context = row["input"].removeprefix(opening).removesuffix(question)
        found = needle.findall(context)
        asked = re.findall(key, question.split(" for ")[1].split(" mentioned")[0])
        asked = [word for word in asked if word != "and"]
        assert wording.question(task.value_type, asked, task.singular) == question
        assert len(asked) == task.queries
        assert row["outputs"] == [v for k in asked for v in dict_of_lists(found, row)[k]]
        assert len(set(row["outputs"])) == len(row["outputs"]) == task.queries * task.values
        if task.haystack == "needle":
            assert context.count("\n") + 1 == len(found)
            assert len({k for k, _ in found}) == len({v for _, v in found}) == len(found)
            lines += len(found) - 1
        else:
            assert len(found) == task.keys * task.values
            assert len({k for k, _ in found}) == task.keys
            hay = needle.sub("", context)
            if task.haystack == "noise":
                assert set(hay.split("\n")) == {wording.NOISE, ""}
            else:
                words = hay.split()
                assert words == essays.text.split()[: len(words)] and len(words) > 50
    assert lines or task.haystack != "needle"


def dict_of_lists(pairs, row):
    """key -> values, in the order of the row's outputs: needles stand in another order."""
    found = {}
    for key, value in sorted(
        pairs, key=lambda pair: row["outputs"].index(pair[1]) if pair[1] in row["outputs"] else -1
    ):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_lengths_are_tight(name, tokenizer, essays):
    for context_length, reserve in ((640, 128), (700, 40)):
        for prompt in draw_prompts(
            name,
            tokenizer,
            context_length=context_length,
            samples=16,
            seed=1,
            haystack=essays,
            tokens_to_generate=reserve,
        ):
            assert prompt.text == prompt.draft.text(prompt.units)
            length, longer = (
                len(tokenizer.encode(prompt.draft.text(units)).ids)
                for units in (prompt.units, prompt.units + 1)
            )
            assert length == len(prompt.encoding.ids)
            assert length + reserve <= context_length < longer + reserve


@pytest.mark.parametrize("name", TASKS)
def test_positions_point_at_the_answers(name, tokenizer, essays):
    for row in draw(name, tokenizer, essays):
        ids = tokenizer.encode(row["input"]).ids
        assert row["length"] == len(ids)
        assert row["answer_token_position"] == row["answer_token_spans"][0][0]
        for answer, (start, stop) in zip(row["outputs"], row["answer_token_spans"], strict=True):
            # Its tokens may take in the space before and the full stop, nothing more.
            assert tokenizer.decode(ids[start:stop]).strip(" .") == answer
            assert tokenizer.decode(ids[:start]).endswith((" is:", " is: "))


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_long_contexts_repeat_the_haystack(name, tokenizer):
    # 30 words of essay, several times over
    essays = Essays("We had rain that day. " * 6)
    row = draw(name, tokenizer, essays, context_length=3000, samples=1)[0]
    assert 2800 < row["length"] + 128 <= 3000


def test_row_does_not_depend_on_how_many(tokenizer, essays):
    for name in TASKS:
        few = draw(name, tokenizer, essays, samples=2)
        assert draw(name, tokenizer, essays, samples=5)[:2] == few


def test_chunks_make_no_difference(tokenizer, essays, monkeypatch):
    whole = draw("niah_multikey_2", tokenizer, essays, samples=5)
    monkeypatch.setattr("ratjax.needle.drawing._TOKENS_AT_ONCE", 2 * 640)
    assert draw("niah_multikey_2", tokenizer, essays, samples=5) == whole


def test_seeds_and_rows_differ(tokenizer, essays):
    one, other = (draw("niah_single_2", tokenizer, essays, seed=seed) for seed in (1, 2))
    drawn = [row["outputs"][0] for row in one + other]
    assert len(set(drawn)) == len(drawn)


def test_permutation_of_needles_is_the_seeds(tokenizer, essays):
    """Which value stands first is fixed by the seed, as in RULER."""

    def ranks(row):
        places = [row["input"].index(value) for value in row["outputs"]]
        return sorted(range(4), key=places.__getitem__)

    by_seed = {}
    for seed in range(6):
        rows = draw("niah_multivalue", tokenizer, essays, seed=seed)
        found = {tuple(ranks(row)) for row in rows}
        assert len(found) == 1
        by_seed[seed] = found.pop()
    assert len(set(by_seed.values())) > 1


@pytest.mark.slow  # the golden prompts, in whatever process, say the same of one prompt a task
def test_rows_are_the_same_in_another_process(tokenizer, essays, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    code = (
        "import hashlib, json, sys; from tokenizers import Tokenizer; from ratjax import needle;"
        "t = Tokenizer.from_file(sys.argv[1]); e = needle.Essays(sys.stdin.read());"
        "rows = [needle.generate(n, t, context_length=640, samples=6, seed=42, haystack=e)"
        " for n in needle.TASKS];"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    rows = [draw(name, tokenizer, essays) for name in TASKS]
    expected = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tokenizer.json")],
        input=essays.text,
        env=os.environ | {"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == expected


def test_truncation_and_padding_of_the_tokenizer_are_ignored(tokenizer, essays):
    limited = Tokenizer.from_str(tokenizer.to_str())
    limited.enable_truncation(50)
    limited.enable_padding(length=5000)
    assert draw("niah_single_2", limited, essays) == draw("niah_single_2", tokenizer, essays)
    assert limited.truncation is not None and limited.padding is not None


def test_a_folder_is_a_haystack(tokenizer, essays, tmp_path):
    (tmp_path / "a.txt").write_text(essays.text, "utf-8")
    assert draw("niah_single_2", tokenizer, tmp_path) == draw("niah_single_2", tokenizer, essays)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"no \.txt file"):
        draw("niah_single_2", tokenizer, tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_the_shortest_context_is_named_and_works(name, tokenizer, essays):
    with pytest.raises(InputError, match=rf"too short for {name}") as caught:
        draw(name, tokenizer, essays, context_length=130)
    assert "\n" not in str(caught.value)
    needed = int(re.search(r"give at least (\d+)", str(caught.value))[1])
    rows = draw(name, tokenizer, essays, context_length=needed)
    assert max(row["length"] for row in rows) == needed - 128
    with pytest.raises(InputError, match="too short"):
        draw(name, tokenizer, essays, context_length=needed - 1)


def test_other_tasks_work_too(tokenizer, essays):
    task = Task("noise_with_keys", "x", "noise", "words", "words", keys=5, values=2, queries=2)
    # The needles alone need most of this, so that there are fewer lines than needles.
    for context_length in (700, 4000):
        for row in draw(task, tokenizer, essays, context_length=context_length, samples=2):
            assert len(row["outputs"]) == 4
            assert all(row["input"].count(f" is: {word}.") == 1 for word in row["outputs"])
            assert row["input"].count("One of the special magic words for ") == 10


@pytest.mark.parametrize("field", ["context_length", "samples", "tokens_to_generate"])
def test_numbers_below_one_are_refused(field, tokenizer, essays):
    with pytest.raises(InputError, match=f"{field}=0"):
        draw("niah_single_1", tokenizer, essays, **{field: 0})


def test_unknown_task_is_refused(tokenizer, essays):
    with pytest.raises(InputError, match="niah_single_1"):
        draw("niah_singel_1", tokenizer, essays)


def test_a_tokenizer_without_digits_is_refused(essays):
    letters = re.sub(r"\d", "", essays.text)
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        [essays.text, "0 1 2 3 4 5 6 7 8 9"],
        trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False),
    )
    dropping = Tokenizer(models.BPE())
    dropping.pre_tokenizer = pre_tokenizers.Whitespace()
    dropping.train_from_iterator(
        [letters], trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    for tokenizer in (words, dropping):
        with pytest.raises(InputError, match="cannot express digits") as caught:
            draw("niah_single_1", tokenizer, essays)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_drops_the_haystack_is_refused(tokenizer):
    digits = Tokenizer(models.BPE())
    digits.pre_tokenizer = pre_tokenizers.Whitespace()
    digits.train_from_iterator(
        ["0123456789-abcdefghijklmnopqrstuvwxyz"],
        trainers.BpeTrainer(vocab_size=60, show_progress=False),
    )
    with pytest.raises(InputError, match="haystack as no tokens"):
        draw("niah_single_2", digits, Essays("ÄÖ ÜÄ. ÖÜ ÄÖ"))


def test_whitespace_tokenizers_work(essays):
    """Spaces and line breaks belong to no token here."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.train_from_iterator(
        [essays.text, "0123456789"], trainers.BpeTrainer(vocab_size=400, show_progress=False)
    )
    for row in draw("niah_multiquery", tokenizer, essays):
        encoding = tokenizer.encode(row["input"])
        assert row["length"] == len(encoding.ids) <= 640 - 128
        for answer, (start, stop) in zip(row["outputs"], row["answer_token_spans"], strict=True):
            assert "".join(encoding.tokens[start:stop]) == answer
