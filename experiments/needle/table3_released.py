"""Table 3 and Figure 1, left: the released 7B checkpoints of RAT+ under sparse inference.

  python -m launch.evaluate --config=experiments/needle/table3_released.py \\
      --checkpoint=models --workdir=runs/table3

13 settings a backbone: dense, Quest with pages of 64 at three budgets and of 16 at 1/64, MoBA with
blocks of 64 at three and of 128 at two, SnapKV at three. `:dilated` behind the file's name runs
dilated patterns instead, alone and with top-k pages; `--config.samples=20` takes a quick look.
"""

import dataclasses

from experiments.needle import settings
from ratjax.config.overrides import to_config_dict

NEEDLE = dataclasses.replace(
    settings.NEEDLE,
    checkpoints=settings.RELEASED_PAIR,
    paper_checkpoints="ratplus_7b_100bt",
)


def get_config(variant: str = "paper"):
    needle = settings.pick(settings.tables(NEEDLE), variant)
    name = "table3" if variant == "paper" else f"table3_{variant}"
    description = "RAT+ 7B and its attention-only twin, each from scratch on 100B tokens"
    return to_config_dict(settings.released(name, description, needle))
