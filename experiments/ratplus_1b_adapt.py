"""RAT+ 1B adapted to a sparse pattern with a billion tokens, as the released code does.

  python -m launch.train --config=experiments/ratplus_1b_adapt.py --workdir=models/ratplus_1b_d16

One pass a batch, under the pattern that the model will be used with: here every 16th key and four
initial ones. Others: --config.train.recurrence_dilation=64, --config.train.recurrence_local=256; a
dilation of 1 is dense attention. Learning rate 8e-5 without warmup, 512 sequences of 4096 a step.

Needs: models/ratplus_1b (ratplus_1b_scratch.py, or launch.convert, barpitf/ratplus) and
data/fineweb-edu-llama (launch.tokenize).

Compute: 8.91e+18 FLOPs; at 40 % MFU 0.2 hours on 64 chips of v5p, 0.8 hours on 8 H100.
State: 16.5 GiB in all, of 1.47 billion parameters.
Result: unknown at this size. For 7.6B the RAT+ paper's Table 8 has on NIAH-MK: 99.8 dense, 90.5
with every 16th key, 79.1 with every 64th.
"""

from experiments.recipes import on_text, ratplus
from ratjax.config.overrides import to_config_dict


def get_config():
    return to_config_dict(
        on_text(
            "ratplus_1b_adapt",
            "RAT+ 1B, adapted to a dilated pattern with 1B tokens of FineWeb-Edu.",
            ratplus("ratplus_1b"),
            tokens=1e9,
            batch=512,
            recurrence="adapt",
            recurrence_dilation=16,
            recurrence_initial=4,
            learning_rate=8e-5,
            warmup=0.0,
            microbatches=2,
            init_from="models/ratplus_1b",
        )
    )
