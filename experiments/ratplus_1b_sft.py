"""Needle fine-tuning of RAT+ 1B: olmo2_7b_sft.py's rows and optimizer, in RAT+'s tokens.

  python -m launch.prepare --config=experiments/ratplus_1b_sft.py
  python -m launch.train --config=experiments/ratplus_1b_sft.py --workdir=models/ratplus_1b_sft

Needs: models/ratplus_1b (ratplus_1b_scratch.py, or launch.convert, barpitf/ratplus); an adapted
model by --config.train.init_from=models/ratplus_1b_d16.

Compute: 2.96e+18 FLOPs; at 40 % MFU 0.3 hours on 8 H100.
State: 16.5 GiB in all, of 1.47 billion parameters. At most 32 devices: a step has 32 rows.
Result: unknown at this size.
"""

from experiments.recipes import on_needles, ratplus
from ratjax.config.overrides import to_config_dict


def get_config():
    return to_config_dict(
        on_needles(
            "ratplus_1b_sft",
            "RAT+ 1B, fine-tuned on the needle tasks.",
            ratplus("ratplus_1b"),
            start="models/ratplus_1b",
        )
    )
