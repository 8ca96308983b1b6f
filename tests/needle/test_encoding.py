"""Measuring with any tokenizer."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ratjax.data.encoding import digest
from ratjax.errors import InputError
from ratjax.needle.encoding import check_values, count, encode, plain, token_span


def test_count_is_the_length_of_encode(tokenizer):
    texts = ["", "one", "The tide table hung on the wall. 1234567", "ü naïve\n"]
    assert count(tokenizer, texts) == [len(found.ids) for found in encode(tokenizer, texts)]


def test_special_tokens_are_left_out(tokenizer):
    from tokenizers.processors import TemplateProcessing

    framed = Tokenizer.from_str(tokenizer.to_str())
    eos = "<|endoftext|>"
    framed.post_processor = TemplateProcessing(
        single=f"{eos} $A {eos}", special_tokens=[(eos, framed.token_to_id(eos))]
    )
    assert framed.encode("tide").ids != tokenizer.encode("tide").ids
    assert encode(framed, ["tide"])[0].ids == tokenizer.encode("tide").ids
    assert count(framed, ["tide"]) == count(tokenizer, ["tide"])


def test_plain_leaves_a_plain_tokenizer_alone(tokenizer):
    assert plain(tokenizer) is tokenizer


def test_token_span_covers_its_characters_and_no_more(tokenizer):
    text = "naïve, the answer is: 1234567. ok"
    encoding = encode(tokenizer, [text])[0]
    for start in range(len(text)):
        for stop in range(start + 1, len(text) + 1):
            first, last = token_span(encoding, start, stop)
            offsets = encoding.offsets[first:last]
            assert offsets[0][0] <= start < offsets[0][1]
            assert offsets[-1][0] < stop <= offsets[-1][1]


@pytest.mark.parametrize("kind", ["numbers", "words", "uuids"])
def test_byte_level_tokenizers_express_everything(tokenizer, kind):
    check_values(tokenizer, kind)


def _characters(known: str) -> Tokenizer:
    vocabulary = {"[UNK]": 0} | {c: i + 1 for i, c in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def test_one_missing_character_is_noticed():
    check_values(_characters("0123456789"), "numbers")
    check_values(_characters("0123456789abcdef-"), "uuids")
    with pytest.raises(InputError, match="digits: encodes '7' as nothing it knows"):
        check_values(_characters("012345689"), "numbers")
    with pytest.raises(InputError, match="hyphens: encodes '-'"):
        check_values(_characters("0123456789abcdef"), "uuids")


def test_digits_that_look_the_same_are_noticed(tokenizer):
    from tokenizers import normalizers

    blurred = Tokenizer.from_str(tokenizer.to_str())
    blurred.normalizer = normalizers.Replace("8", "3")
    with pytest.raises(InputError, match="encodes '8' like '3'"):
        check_values(blurred, "numbers")


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    assert digest(other) == digest(tokenizer)
    other.add_special_tokens(["<new>"])
    assert digest(other) != digest(tokenizer)
