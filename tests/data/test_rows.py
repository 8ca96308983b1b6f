import json

import numpy as np
import pytest

from ratjax.data import MissingDataError, Rows, open_source, write_rows
from ratjax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (5, 8), dtype=np.int32)
    write_rows(tmp_path / "rows", tokens, rng.random((5, 8)) < 0.5, seed=3)
    return tmp_path / "rows"


def test_rows_are_read_as_inputs_and_targets(folder):
    tokens = np.load(folder / "tokens.npy")
    mask = np.load(folder / "loss_mask.npy")
    batch = Rows(folder, 8).read(np.asarray([3, 0, 3]))
    for row, k in enumerate((3, 0, 3)):
        assert np.array_equal(batch.tokens[row], tokens[k])
        # The mask marks the token that is predicted; a batch marks the input that predicts it.
        assert np.array_equal(batch.targets[row, :-1], tokens[k, 1:])
        assert np.array_equal(batch.mask[row, :-1], mask[k, 1:])
        assert not batch.mask[row, -1]
        assert batch.document_starts[row].tolist() == [True] + [False] * 7


def test_writing_keeps_what_is_there_and_leaves_nothing_half_written(folder):
    before = sorted(path.name for path in folder.parent.rglob("*"))
    with pytest.raises(InputError, match="not empty"):
        write_rows(folder, np.zeros((1, 8), np.int32), np.zeros((1, 8), bool))
    assert sorted(path.name for path in folder.parent.rglob("*")) == before
    assert json.loads((folder / "index.json").read_text())["seed"] == 3


def test_missing_folder(tmp_path):
    with pytest.raises(MissingDataError, match="nowhere: data folder does not exist"):
        open_source(tmp_path / "nowhere", 8)
    with pytest.raises(MissingDataError, match=r"has no index\.json"):
        open_source(tmp_path, 8)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "tokens.npy").unlink(), r"tokens\.npy: missing"),
        (lambda f: truncate(f / "tokens.npy"), r"tokens\.npy: not readable"),
        (lambda f: truncate(f / "loss_mask.npy"), r"loss_mask\.npy: not readable"),
        (lambda f: truncate(f / "index.json"), r"index\.json: not readable as JSON"),
        (lambda f: (f / "index.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: (f / "index.json").write_text("{}"), "names neither the rows"),
        (lambda f: np.save(f / "tokens.npy", np.zeros((5, 8))), "must be int32"),
        (lambda f: np.save(f / "loss_mask.npy", np.zeros((4, 8), bool)), r"must be bool \[5, 8\]"),
        (lambda f: np.save(f / "tokens.npy", np.zeros((5, 9), np.int32)), r"must be bool \[5, 9\]"),
    ],
)
def test_damage_is_named_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as raised:
        open_source(folder, 8)
    assert "\n" not in str(raised.value)


def test_rows_of_another_length_or_none(folder, tmp_path):
    with pytest.raises(InputError, match="have 8 tokens, but the stage's sequence_length is 16"):
        open_source(folder, 16)
    write_rows(tmp_path / "empty", np.zeros((0, 8), np.int32), np.zeros((0, 8), bool))
    with pytest.raises(InputError, match="holds no rows"):
        open_source(tmp_path / "empty", 8)


def test_index_that_belongs_to_other_rows(folder):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "rows": 6}))
    with pytest.raises(InputError, match=r"not what index.json says"):
        open_source(folder, 8)
