"""Sentence ends, word by word."""

import pytest

from ratjax.needle.sentences import sentence_ends


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One here. Two here! Three? Four", 4),
        ("Dr. Smith met J. R. Brown, e.g. today.", 1),
        ("It cost 3.5 pounds. He paid.", 2),
        ('She said "no." Then she left.', 2),
        ("They met (at noon.) Then they ate.", 2),
        ("Well... maybe. Or not.", 2),
        ("Really? yes! fine.", 3),
        ("no end at all", 1),
    ],
)
def test_counts(text, sentences):
    assert len(sentence_ends(text.split())) == sentences


def test_last_word_ends_the_last_sentence():
    assert sentence_ends(["We", "go.", "They", "stay"]) == [2, 4]
    assert sentence_ends(["We", "go.", "They", "stay."]) == [2, 4]
    assert sentence_ends([]) == []


def test_sentences_of_a_prefix_are_a_prefix_of_the_sentences(essays):
    words = essays.text.split()
    whole = sentence_ends(words)
    for n in (1, 57, 400, 1203):
        assert sentence_ends(words[:n])[:-1] == [end for end in whole if end < n]


def test_an_unmatched_quotation_mark_swallows_nothing(essays):
    words = ['"An', "open", "quote", "begins.", *essays.text.split()]
    ends = sentence_ends(words)
    longest = max(b - a for a, b in zip([0, *ends], ends, strict=False))
    assert longest < 80
