"""Random keys and values."""

import random
import re
import uuid

from ratjax.needle.words import draw, draw_new, word_lists


def test_words_are_the_pairs_ruler_draws_from():
    adjectives, nouns = word_lists()
    assert len(adjectives) * len(nouns) == 6_171_620
    # Two pairs could only give one string if an adjective went on with a hyphen inside another
    # pair: then drawing pairs would not be drawing distinct strings.
    starts = {f"{short}-" for short in adjectives}
    longer = [a for a in adjectives for i, c in enumerate(a) if c == "-" and a[: i + 1] in starts]
    nouns_set = set(nouns)
    clashes = [
        (a, noun) for a in longer for noun in nouns if f"{a.split('-', 1)[1]}-{noun}" in nouns_set
    ]
    assert not clashes


def test_numbers_have_seven_digits_and_use_them_all():
    drawn = [draw("numbers", random.Random(i)) for i in range(300)]
    assert all(re.fullmatch(r"[1-9]\d{6}", number) for number in drawn)
    assert {number[0] for number in drawn} == set("123456789")
    assert {number[-1] for number in drawn} == set("0123456789")


def test_uuids_are_version_4_and_come_from_the_seed():
    drawn = draw("uuids", random.Random(5))
    assert uuid.UUID(drawn).version == 4 and len(drawn) == 36
    assert drawn == draw("uuids", random.Random(5)) != draw("uuids", random.Random(6))


def test_draw_new_never_repeats():
    class Few(random.Random):
        def randint(self, a, b):
            return 1_000_000 + int(self.random() * 3)

    rng, used = Few(0), set()
    drawn = [draw_new("numbers", rng, used) for _ in range(3)]
    assert sorted(drawn) == ["1000000", "1000001", "1000002"] and used == set(drawn)
