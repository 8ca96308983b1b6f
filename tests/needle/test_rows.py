"""Training rows: what is supervised, what a model sees, what is on disk."""

import hashlib
import json

import numpy as np
import pytest

from ratjax.data import open_source
from ratjax.errors import InputError
from ratjax.needle import (
    TASKS,
    CopyRows,
    NeedleRows,
    build_rows,
    generate,
    wording,
    write_rows,
)

LENGTH = 512


def build(parts, tokenizer, essays, eos_id, **changes):
    arguments = {"length": LENGTH, "eos_id": eos_id, "seed": 9, "haystack": essays} | changes
    return build_rows(parts, tokenizer, **arguments)


@pytest.mark.parametrize("name", TASKS)
def test_a_published_row_is_prompt_answers_end(name, tokenizer, essays, eos_id):
    rows = build([NeedleRows(name, 5, LENGTH, 128)], tokenizer, essays, eos_id, shuffle=False)
    prompts = generate(name, tokenizer, context_length=LENGTH, samples=5, seed=9, haystack=essays)
    assert rows.tokens.dtype == np.int32 and rows.loss_mask.dtype == bool
    for tokens, mask, prompt in zip(rows.tokens, rows.loss_mask, prompts, strict=True):
        asked = tokenizer.encode(prompt["input"]).ids
        answer = tokenizer.encode(",".join(prompt["outputs"])).ids
        n, m = len(asked), len(answer)
        # What follows the prompt is what a model that generates has to produce, token by token.
        assert tokens[:n].tolist() == asked
        assert tokens[n : n + m].tolist() == answer
        assert (tokens[n + m :] == eos_id).all() and n + m < LENGTH
        assert np.flatnonzero(mask).tolist() == list(range(n, n + m + 1))
        assert tokenizer.decode(tokens[mask][:-1].tolist()) == ",".join(prompt["outputs"])


@pytest.mark.parametrize(
    ("name", "most"),
    [("niah_multikey_1", 4), ("niah_multikey_2", 9), ("niah_multivalue", 1), ("niah_single_1", 1)],
)
def test_further_questions_are_about_other_keys(name, most, tokenizer, essays, eos_id):
    part = NeedleRows(name, 8, LENGTH, 300, questions=9)
    rows = build([part], tokenizer, essays, eos_id, shuffle=False)
    single = TASKS[name].singular
    asked_often = 0
    for tokens, mask in zip(rows.tokens, rows.loss_mask, strict=True):
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        turns = text.split("\nWhat ")
        context, asked = turns[0], []
        for turn in turns[1:]:
            question, reply = turn.split("?", 1)
            reply, rest = reply.split("<|endoftext|>", 1)
            key = question.split(" for ")[1].removesuffix(" mentioned in the provided text")
            assert f"\nWhat {question}?" == wording.question("numbers", [key], single)
            assert all(f"for {key} is: {v}." in context for v in reply.split(","))
            assert not rest.replace("<|endoftext|>", "")
            asked.append((key, reply))
        assert len({key for key, _ in asked}) == len(asked) <= most
        asked_often += len(asked) > 1
        # Every reply with its end is supervised, nothing else is.
        runs = np.split(tokens, np.flatnonzero(np.diff(mask)) + 1)
        supervised = [tokenizer.decode(run.tolist(), False) for run in runs[1::2]]
        assert supervised == [f"{reply}<|endoftext|>" for _, reply in asked]
    assert asked_often == (8 if most > 1 else 0)


def test_the_first_question_is_the_published_row(tokenizer, essays, eos_id):
    part = NeedleRows("niah_multikey_2", 4, LENGTH, 256)
    more = NeedleRows("niah_multikey_2", 4, LENGTH, 256, questions=3)
    rows, longer = (build([p], tokenizer, essays, eos_id, shuffle=False) for p in (part, more))
    for i in range(4):
        end = np.flatnonzero(rows.loss_mask[i])[-1] + 1
        assert (rows.tokens[i, :end] == longer.tokens[i, :end]).all()
        assert (rows.loss_mask[i, :end] == longer.loss_mask[i, :end]).all()
        assert longer.loss_mask[i, end:].any() and not rows.loss_mask[i, end:].any()


@pytest.mark.parametrize("unit", ["token", "word"])
def test_copies_repeat_and_supervise_the_second_occurrence(unit, tokenizer, essays, eos_id):
    part = CopyRows(40, period=(5, 30), unit=unit)
    rows = build([part], tokenizer, essays, eos_id, length=200)
    assert rows.tokens.shape == (40, 200) and eos_id not in rows.tokens
    periods = set()
    for tokens, mask in zip(rows.tokens, rows.loss_mask, strict=True):
        at = 0
        while at < 200:
            # A block is 2 p tokens of which the last p - 1 are targets; the row may cut it.
            targets = np.flatnonzero(mask[at:])
            first = int(targets[0]) if len(targets) else 200 - at
            p = first - 1
            stop = min(at + 2 * p, 200)
            assert (tokens[at + p : stop] == tokens[at : stop - p]).all() or stop == 200
            assert not mask[at : at + p + 1].any() and mask[at + p + 1 : stop].all()
            if stop < 200:
                periods.add(p)
            at = stop
    assert min(periods) >= 5 and max(periods) <= 30 and len(periods) > 15
    if unit == "token":
        assert len(np.unique(rows.tokens)) > 800  # the whole vocabulary of 1000
    else:
        assert " " in tokenizer.decode(rows.tokens[0].tolist())


def test_copies_cannot_be_guessed(tokenizer, essays, eos_id):
    """First occurrences are new in every row and every block."""
    rows = build([CopyRows(50, period=(8, 8))], tokenizer, essays, eos_id, length=160)
    blocks = rows.tokens.reshape(-1, 16)
    assert (blocks[:, :8] == blocks[:, 8:]).all()
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_parts_of_one_task_do_not_repeat_each_other(tokenizer, essays, eos_id):
    both = build(
        [NeedleRows("niah_single_1", 6, 400, 128), NeedleRows("niah_single_1", 6, LENGTH, 128)],
        tokenizer,
        essays,
        eos_id,
        shuffle=False,
    )
    answers = {
        tokens[mask].tobytes() for tokens, mask in zip(both.tokens, both.loss_mask, strict=True)
    }
    assert len(answers) == 12


def test_order_is_shuffled_by_the_seed_alone(tokenizer, essays, eos_id):
    parts = [NeedleRows("niah_single_1", 9, LENGTH), CopyRows(9)]
    plain, mixed, again = (
        build(parts, tokenizer, essays, eos_id, shuffle=shuffle) for shuffle in (False, True, True)
    )
    assert (mixed.tokens == again.tokens).all() and (mixed.loss_mask == again.loss_mask).all()
    assert not (mixed.tokens == plain.tokens).all()
    joined = lambda rows: sorted(  # noqa: E731
        t.tobytes() + m.tobytes() for t, m in zip(rows.tokens, rows.loss_mask, strict=True)
    )
    assert joined(mixed) == joined(plain)
    other = build(parts, tokenizer, essays, eos_id, seed=10)
    assert not set(joined(other)) & set(joined(mixed))


def test_round_trip_through_a_folder(tokenizer, essays, eos_id, tmp_path):
    rows = build([NeedleRows("niah_multikey_2", 3, LENGTH), CopyRows(2)], tokenizer, essays, eos_id)
    folder = tmp_path / "made" / "rows"
    write_rows(rows, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["rows"]
    found = open_source(folder, LENGTH)
    assert (found.tokens == rows.tokens).all() and (found.loss_mask == rows.loss_mask).all()
    index = json.loads((folder / "index.json").read_text("utf-8"))
    assert index["rows"] == 5 and index["length"] == LENGTH and index["seed"] == 9
    assert index["tasks"] == {"niah_multikey_2": 3, "copy": 2}
    assert index["tokenizer_sha256"] == hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    assert index["version"] and index["eos_id"] == eos_id
    with pytest.raises(InputError, match="not empty"):
        write_rows(rows, folder)


def test_bad_input_is_refused(tokenizer, essays, eos_id):
    part = NeedleRows("niah_single_1", 2, LENGTH, 128)
    with pytest.raises(InputError, match="eos_id=5000"):
        build([part], tokenizer, essays, 5000)
    with pytest.raises(InputError, match="none given"):
        build([], tokenizer, essays, eos_id)
    with pytest.raises(InputError, match="raise length, or tokens_to_generate=3"):
        build([NeedleRows("niah_single_3", 2, LENGTH, 3)], tokenizer, essays, eos_id)
    with pytest.raises(InputError, match="length=100"):
        build([part], tokenizer, essays, eos_id, length=100)
    with pytest.raises(InputError, match=r"rows\.questions"):
        NeedleRows("niah_single_1", 2, LENGTH, questions=0)
    with pytest.raises(InputError, match=r"copy\.period"):
        CopyRows(2, period=(9, 8))
    with pytest.raises(InputError, match=r"copy\.unit"):
        CopyRows(2, unit="line")
