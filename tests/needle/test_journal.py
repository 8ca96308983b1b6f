"""A journal survives being killed at any byte, and refuses what does not belong to it."""

import pytest

from ratjax.errors import InputError
from ratjax.needle.journal import Journal

IDENTITY = {"samples": 3, "needle": {"budgets": ("1/4",)}}
LINES = [{"backbone": "memory", "setting": 0, "prompt": i, "prediction": "ü\n"} for i in range(3)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def write(path):
    journal = Journal(path)
    assert journal.begin("memory", IDENTITY) == []
    journal.add(LINES[:2])
    journal.add(LINES[2:])
    journal.close()


def test_what_was_added_is_there_again(path):
    assert not path.parent.exists()  # bad input before the first answer leaves nothing behind
    Journal(path)
    assert not path.parent.exists()
    write(path)
    journal = Journal(path)
    assert journal.begin("memory", IDENTITY) == LINES
    assert journal.begin("attention", IDENTITY) == []
    journal.remove()
    assert not path.exists()


def test_killed_at_any_byte(path):
    write(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        warnings = []
        journal = Journal(path, warnings.append)
        kept = sum(end <= cut for end in ends)
        assert journal.begin("memory", IDENTITY) == LINES[: max(kept - 1, 0)]
        journal.add(LINES[max(kept - 1, 0) :])
        journal.close()
        assert path.read_bytes() == whole
        assert len(warnings) == (cut not in (0, *ends))
        assert all("dropped" in warning and "\n" not in warning for warning in warnings)


@pytest.mark.parametrize("damage", [b"\x00" * 40, b"{}}\n", b"17\n", b'{"a": 1}'])
def test_garbage_at_the_end_is_cut_off(path, damage):
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole + damage)
    warnings = []
    Journal(path, warnings.append).close()
    assert path.read_bytes() == whole
    assert f"last {len(damage)} bytes" in warnings[0]


def test_another_evaluation_is_refused_by_what_differs(path):
    write(path)
    other = {"samples": 3, "needle": {"budgets": ("1/8",)}}
    journal = Journal(path)
    with pytest.raises(InputError, match=r'needle.budgets\[0\]="1/4", not "1/8"'):
        journal.begin("memory", other)
    journal.close()


def test_one_writer_at_a_time(path):
    write(path)
    journal = Journal(path)
    with pytest.raises(InputError, match="another evaluation"):
        Journal(path)
    journal.close()
    Journal(path).close()
