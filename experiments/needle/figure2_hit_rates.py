"""Figures 2 to 4: which heads' selections hold the answer, on the released 7B checkpoints.

  python -m launch.evaluate --config=experiments/needle/figure2_hit_rates.py \\
      --checkpoint=models --workdir=runs/figure2

7 settings a backbone: dense, Quest with pages of 64 and SnapKV at three budgets. Writes hits.json
beside the scores: every head's hit rate, the best 50 of every task and setting, and the score
where one of these, or none, held the answer. Behind the file's name: `:olmo2` takes the OLMo2 pair
and the matched control; `--config.samples=20` a quick look.
"""

import dataclasses

from experiments.needle import settings
from ratjax.config.overrides import to_config_dict

NEEDLE = dataclasses.replace(settings.NEEDLE, methods=("quest", "snapkv"), hit_rates=True)


def get_config(variant: str = "paper"):
    released = dataclasses.replace(
        NEEDLE, checkpoints=settings.RELEASED_PAIR, paper_checkpoints="ratplus_7b_100bt"
    )
    olmo2 = dataclasses.replace(
        NEEDLE,
        checkpoints=(*settings.OLMO2_PAIR, settings.OLMO2_CONTROL),
        paper_checkpoints="olmo2_7b",
    )
    needle = settings.pick({"paper": released, "olmo2": olmo2}, variant)
    make = settings.olmo2 if variant == "olmo2" else settings.released
    name = "figure2" if variant == "paper" else f"figure2_{variant}"
    description = "Hit rates of the heads' selections under Quest and SnapKV"
    return to_config_dict(make(name, description, needle))
