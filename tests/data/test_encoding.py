import json

import pytest

from data.corpora import EOS, WORDS, tokenizer
from ratjax.data import encoding
from ratjax.data.encoding import digest, encode, find_eos, load_tokenizer
from ratjax.data.tokenizer import train_tokenizer
from ratjax.errors import InputError


def test_special_tokens_are_not_read_out_of_texts():
    made = train_tokenizer(["some text of a document"], 300)
    (eos,) = made.encode("<|endoftext|>", add_special_tokens=False).ids
    text = "how to write <|endoftext|> in a document"
    ((kept, ids),) = encode([text], made)
    assert eos not in ids and made.decode(ids) == text == kept
    # and the tokenizer is as it was
    assert made.encode("<|endoftext|>", add_special_tokens=False).ids == [eos]


def test_lots_keep_the_order_and_leave_out_empty_documents(monkeypatch):
    texts = [" ".join(WORDS[n % 3 : n % 3 + 1] * (n % 7)) for n in range(100)]
    expected = [(t, tokenizer().encode(t).ids) for t in texts if t]
    for documents, characters in ((1024, 1 << 20), (3, 1 << 20), (1024, 10), (1, 1)):
        monkeypatch.setattr(encoding, "LOT_DOCUMENTS", documents)
        monkeypatch.setattr(encoding, "LOT_CHARACTERS", characters)
        assert list(encode(texts, tokenizer())) == expected


def test_half_a_surrogate_pair():
    made = train_tokenizer(["some text"], 300)
    ((text, ids),) = encode([json.loads('"a\\ud83d b"')], made)
    assert text == "a\ufffd b" == made.decode(ids)


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    made = tokenizer()
    made.enable_truncation(2)
    made.enable_padding(length=20)
    made.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).encode("a b c d").ids == [0, 1, 2, 4]
    assert digest(load_tokenizer(tmp_path)) == digest(tokenizer())
    assert digest(load_tokenizer(tmp_path)) != digest(tokenizer(special=False))


def test_bad_tokenizer_files(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json'?: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json \("):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_the_token_after_a_document():
    made = tokenizer()
    assert find_eos(made) == find_eos(made, "<eos>") == find_eos(made, number=EOS) == EOS
    assert find_eos(made, "d") == 4
    for options, message in (
        ({"token": "<eox>"}, "eos='<eox>': not in the tokenizer; did you mean <eos>"),
        ({"number": 99}, r"eos_id=99: the tokenizer has no such token \(it has 9\)"),
        ({"token": "<eos>", "number": 3}, "give one of them"),
    ):
        with pytest.raises(InputError, match=message):
            find_eos(made, **options)
    made.add_special_tokens(["</s>"])
    with pytest.raises(InputError, match="the tokenizer has </s>, <eos>; say which"):
        find_eos(made)


def test_a_tokenizer_without_eos():
    from tokenizers import Tokenizer, models

    with pytest.raises(InputError, match="no EOS of a usual name"):
        find_eos(Tokenizer(models.WordLevel({"a": 0}, "a")))
