"""Hit rates: how often each head's selection holds every position that an answer is copied from.

The paper's first hypothesis (arXiv 2605.28640, Section 3.3, Figures 2 to 4): a head hits a prompt
where its selection holds the needed position at every decoding step; heads are ranked by the share
of prompts that they hit, and the best 50 are compared between backbones: of 1024, and of a model
with fewer heads the same share. Answers are teacher-forced and counted from their second token: the
first comes from prefill, which reads everything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from tokenizers import Tokenizer

from ratjax.needle import cells
from ratjax.needle.drawing import Prompt
from ratjax.needle.encoding import encode, plain

# Heads of a curve in the paper's figures, and of the model that they are of.
TOP, OF = 50, 1024
WATCHED = ("quest", "snapkv")  # methods that select while decoding, or for it

Hits = Bool[np.ndarray, "L H"]


def targets(prompt: Prompt, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The right answer's tokens, and the prompt's position that each of them is copied from.

    The answer is that of the training rows: all answers, joined by commas. A token that holds no
    character of an answer (a comma alone) is copied from nowhere: -1.
    """
    text, places = ",".join(prompt.answers), []
    for start, stop in prompt.spans:
        places += [*range(start, stop), -1]  # -1: the comma behind it
    answer = encode(plain(tokenizer), [text])[0]
    needed = []
    for start, stop in answer.offsets:
        held = (prompt.encoding.char_to_token(p) for p in places[start:stop] if p >= 0)
        needed.append(next((token for token in held if token is not None), -1))
    return answer.ids, needed


def pack(hits: Hits) -> str:
    """One prompt's hits as text: a bit a head, layer by layer, in hexadecimal."""
    return np.packbits(hits).tobytes().hex()


def unpack(text: str, layers: int, heads: int) -> Hits:
    """The hits that `pack` made text of."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=layers * heads)
    return bits.astype(bool).reshape(layers, heads)


def best_heads(heads: int) -> int:
    """How many heads of a model count as its best: 50 of 1024 or more, that share of fewer."""
    return min(TOP, max(1, round(heads * TOP / OF)))


def summary(
    answered: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], layers: int, heads: int
) -> dict[str, Any]:
    """Hit rates of one setting on one task, and what a hit is worth.

    Args:
      answered: (prompt row, its record with its packed `hits`), one a prompt.
      layers: of the model.
      heads: query heads a layer.

    Returns:
      `rates` [L][H]: share of the prompts that each head hit; `top`: the first 50 heads by rate as
      [rate, layer, head], the lower layer and head first among equals; `best`: how many of them
      count as the best (`best_heads`); `given_hit` and `given_miss`: prompts, and their mean strict
      score in percent (None without prompts), where at least one, and where none, of the best hit.
    """
    hits = np.stack([unpack(found["hits"], layers, heads) for _, found in answered])
    rates = hits.mean(0)
    order = np.argsort(-rates, axis=None, kind="stable")[:TOP]
    places = [(int(i) // heads, int(i) % heads) for i in order]
    best = best_heads(layers * heads)
    any_hit = hits.reshape(len(hits), -1)[:, order[:best]].any(1)
    strict = np.array([cells.scores(found, row["outputs"])["strict"] for row, found in answered])
    return {
        "samples": len(answered),
        "top": [[_rounded(rates[place]), *place] for place in places],
        "best": best,
        "rates": [[_rounded(rate) for rate in layer] for layer in rates],
        "given_hit": _given(strict[any_hit]),
        "given_miss": _given(strict[~any_hit]),
    }


def _rounded(rate: float) -> float:
    return round(float(rate), 4)


def _given(strict: Float64[np.ndarray, " prompts"]) -> dict[str, Any]:
    score = round(100 * float(strict.mean()), 2) if strict.size else None
    return {"prompts": int(strict.size), "score_strict": score}
