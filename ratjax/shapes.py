"""The notation: one letter an axis, the same in every file.

| letter | axis                                                            |
|--------|-----------------------------------------------------------------|
| B      | batch                                                           |
| T      | time: query positions                                           |
| S      | key/value positions, or slots of a cache                        |
| H      | query heads                                                     |
| G      | key/value heads; query head h reads key/value head h // (H / G) |
| D      | channels of one head                                            |
| M      | model width (the residual stream)                               |
| F      | width of the feed-forward layer                                 |
| V      | vocabulary                                                      |
| L      | layers                                                          |
| P      | blocks ("pages" in Quest) of consecutive keys                   |
| K      | blocks a query keeps                                            |
| C      | tokens a compressed cache keeps                                 |
| W      | tokens of an observation window                                 |

The aliases below are for the arrays that cross module borders. Axis names bind across the
arguments of one call: `Queries` and `Keys` in one signature must agree on B and D.
"""

from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, PRNGKeyArray

Tokens = Int32[Array, "B T"]
Lengths = Int32[Array, " B"]
PromptKeys = Key[Array, " B"]  # one random key a prompt
Residual = Float[Array, "B T M"]
Logits = Float32[Array, "B T V"]

Queries = Float[Array, "B T H D"]
Keys = Float[Array, "B S G D"]
Values = Float[Array, "B S G D"]
HeadState = Float32[Array, "B G D"]

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Float32",
    "HeadState",
    "Int",
    "Int32",
    "Keys",
    "Lengths",
    "Logits",
    "PRNGKeyArray",
    "PromptKeys",
    "Queries",
    "Residual",
    "Tokens",
    "Values",
]
