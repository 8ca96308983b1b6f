"""A small byte-level BPE tokenizer, trained on the text it is for."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"

# Pairs of digits or hexadecimal digits (only in runs that contain a digit before the pair
# ends, so that words stay words), words with their space, single signs with theirs, space.
_PIECES = r"(?=[a-f]*\d)[0-9a-f]{2}|\d| ?(?![a-f]*\d)\p{L}+| ?[^\s\p{L}\p{N}]|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a tokenizer in which numbers and UUIDs are sequences of pairs of digits.

    A small model copies an answer pair by pair; with whole numbers merged here and there by
    BPE, it would have to learn many spellings of the same digits.

    Args:
      texts: what to learn from.
      vocab_size: tokens, with the 256 bytes and `<|endoftext|>` (id 0) among them.

    Returns:
      A byte-level BPE tokenizer that expresses any text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
