"""RAT+ 1B from nothing, on 110 billion tokens, as the released code trains it (wimh966/rat-plus).

  python -m launch.train --config=experiments/ratplus_1b_scratch.py --workdir=models/ratplus_1b

FineWeb-Edu's sample-100BT in the tokens of huggyllama/llama-7b, sequences of 4096, 512 a step,
learning rate 8e-4 with 5 % warmup and a cosine to 1e-6, weight decay 0.1, active recurrence
learning, gates that start at N(0, 0.02^2). `--config.backbone=attention` is the twin without the
memory, which makes the same two passes. RAT+ holds 0.5 % of the documents out: launch.tokenize
--held_out=0.005.

Needs: models/llama/tokenizer.json and data/fineweb-edu-llama (launch.tokenize).

Compute: 2.08e+21 FLOPs; at 40 % MFU 49.2 hours on 64 chips of v5p, 22.8 hours on 64 H100.
State: 16.5 GiB in all, of 1.47 billion parameters.
Result: barpitf/ratplus on Hugging Face has the published model (launch.convert reads it) to compare
the held-out loss with. Its authors advise against sparse patterns before ratplus_1b_adapt.py.
"""

from experiments.recipes import on_text, ratplus
from ratjax.config.overrides import to_config_dict


def get_config():
    return to_config_dict(
        on_text(
            "ratplus_1b_scratch",
            "RAT+ 1B, trained from nothing on 110B tokens of FineWeb-Edu.",
            ratplus("ratplus_1b"),
            tokens=110e9,
            batch=512,
            learning_rate=8e-4,
            warmup=0.05,
            microbatches=2,
        )
    )
