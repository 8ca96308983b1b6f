"""The control of olmo2_1b_memory.py: the same tokens, order, steps and optimizer, no memory.

  python -m launch.train --config=experiments/olmo2_1b_control.py --workdir=models/olmo2_1b_control

One field differs from the memory's file; `:dense` behind this one's name makes the dense pass alone
(see olmo2_7b_control.py).

Needs: models/olmo2_1b (launch.convert, allenai/OLMo-2-0425-1B) and data/fineweb-edu
(launch.tokenize).

Compute: 1.62e+20 FLOPs; at 40 % MFU 3.8 hours on 64 chips of v5p, 14.2 hours on 8 H100.
State: 16.6 GiB in all, of 1.48 billion parameters.
Result: unknown; nothing published to compare with.
"""

from experiments import olmo2_1b_memory
from experiments.recipes import control

get_config = control(olmo2_1b_memory.get_config)
