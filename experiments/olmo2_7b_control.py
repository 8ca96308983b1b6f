"""The control of olmo2_7b_memory.py: the same tokens, order, steps and optimizer, no memory.

  python -m launch.train --config=experiments/olmo2_7b_control.py --workdir=models/olmo2_7b_control

The paper has no such run: it compares with OLMo2-7B as released, which has not seen the 10 billion
tokens. One field differs from the memory's file, so this one too makes a sparse pass and a dense
pass over every batch: as many optimizer steps, and 93 % of the FLOPs. Behind the file's name,
`:dense` makes the dense pass alone, as one would train such a model by itself.

Needs: models/olmo2_7b (launch.convert, allenai/OLMo-2-1124-7B) and data/fineweb-edu
(launch.tokenize).

Compute: 8.59e+20 FLOPs; at 40 % MFU 20.3 hours on 64 chips of v5p, 9.4 hours on 64 H100.
State: 81.6 GiB in all, of 7.3 billion parameters.
Result: unknown. The paper's attention rows (Table 4), after the needle fine-tuning but without
these tokens, have as means over eight tasks at 1/4, 1/8 and 1/16 of the keys: Quest 96.65 89.06
73.53, MoBA 99.88 97.20 84.96, SnapKV 75.81 68.46 43.15.
"""

from experiments import olmo2_7b_memory
from experiments.recipes import control

get_config = control(olmo2_7b_memory.get_config)
