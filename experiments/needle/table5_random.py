"""Table 5: random selectors on OLMo2-7B. Does a state carry what its position was to be read for?

  python -m launch.evaluate --config=experiments/needle/table5_random.py \\
      --checkpoint=models --workdir=runs/table5

19 settings a backbone: dense, then Quest and MoBA with 16 blocks of 64 and SnapKV with 1024 tokens
(1/4), each with its own selector and with five draws of a random one, which redraws at every step
(Quest), for every query (MoBA), or once after prefill (SnapKV). Behind the file's name: `:free`
draws without forced blocks (MoBA keeps a query's own block, SnapKV a prompt's last token), so that
both causes can be told apart; `:control` adds the matched control; `:golden` runs Quest and SnapKV
with what the answer is copied from always selected, and never. `--config.samples=20` takes a quick
look.
"""

import dataclasses

from experiments.needle import settings
from ratjax.config.needle import Setting
from ratjax.config.overrides import to_config_dict

QUEST, SNAPKV = Setting("quest", 64, 16, "1/4"), Setting("snapkv", 1, 1024, "1/4")
STEERED = tuple(
    dataclasses.replace(setting, golden=golden)
    for setting in (QUEST, SNAPKV)
    for golden in ("", "in", "out")
)

NEEDLE = dataclasses.replace(
    settings.NEEDLE,
    checkpoints=settings.OLMO2_PAIR,
    paper_checkpoints="olmo2_7b",
    budgets=("1/4",),
    selectors=("original", "random"),
    selector_seeds=(0, 1, 2, 3, 4),
)


def get_config(variant: str = "paper"):
    with_control = (*settings.OLMO2_PAIR, settings.OLMO2_CONTROL)
    free = {"force_first": False, "force_current": False, "window": 1}
    variants = {
        "paper": NEEDLE,
        "control": dataclasses.replace(NEEDLE, checkpoints=with_control),
        "golden": dataclasses.replace(NEEDLE, methods=(), extra=STEERED, paper_checkpoints=""),
        "free": dataclasses.replace(NEEDLE, selectors=("random",), paper_checkpoints="", **free),
    }
    needle = settings.pick(variants, variant)
    name = "table5" if variant == "paper" else f"table5_{variant}"
    description = "OLMo2-7B with and without the memory, selectors replaced by random ones"
    return to_config_dict(settings.olmo2(name, description, needle))
