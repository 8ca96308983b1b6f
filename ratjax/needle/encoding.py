"""The given tokenizer, made safe to measure with: no special tokens, padding or truncation."""

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from ratjax.errors import InputError

_ALPHABET = {
    "numbers": ("digits", "0123456789"),
    "uuids": ("hexadecimal digits and hyphens", "0123456789abcdef-"),
    "words": ("letters", "abcdefghijklmnopqrstuvwxyz"),
}
_PROBES = {
    "numbers": ("1029384", "9687501", "4444444"),
    "uuids": ("0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9", "9f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0"),
    "words": ("quick-fox", "lazy-dog"),
}


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, or a copy of it where it pads or truncates, that does neither."""
    if tokenizer.padding is None and tokenizer.truncation is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """Each text's tokens, without special tokens."""
    return tokenizer.encode_batch(list(texts), add_special_tokens=False)


def count(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has; quicker than `encode`, which also tracks characters."""
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [len(encoding) for encoding in found]


def check_values(tokenizer: Tokenizer, kind: str) -> None:
    """Raises `InputError` unless values of this kind can be told apart in tokens.

    A tokenizer that drops a character or maps it to its unknown token would give prompts nobody
    can answer.
    """
    name, characters = _ALPHABET[kind]
    unknown = getattr(tokenizer.model, "unk_token", None)
    seen: dict[tuple[int, ...], str] = {}
    for probe, found in zip(
        (*characters, *_PROBES[kind]),
        encode(tokenizer, (*characters, *_PROBES[kind])),
        strict=True,
    ):
        ids = tuple(found.ids)
        lost = not ids or (unknown is not None and unknown in found.tokens)
        if lost or ids in seen:
            what = "as nothing it knows" if lost else f"like {seen[ids]!r}"
            raise InputError(
                f"tokenizer: cannot express {name}: encodes {probe!r} {what}; use one trained on "
                "text that holds them, or a byte-level one"
            )
        seen[ids] = probe


def token_span(encoding: Encoding, start: int, stop: int) -> tuple[int, int]:
    """Tokens that hold any of the text's characters `start` .. `stop` - 1: from, up to without.

    Characters that no token holds (dropped white space) are passed over.
    """
    held = (encoding.char_to_token(char) for char in range(start, stop))
    first = next(token for token in held if token is not None)
    held = (encoding.char_to_token(char) for char in range(stop - 1, start - 1, -1))
    return first, next(token for token in held if token is not None) + 1
