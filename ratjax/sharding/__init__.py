"""Where arrays lie: the mesh, the logical axes of arrays, and the one table between them.

Code names the axes of an array by what they mean (`batch`, `heads`); `table.RULES` says which
axis of the mesh each is cut along. The mesh's axes are explicit: an array's type says how it is
cut, JAX refuses what it cannot infer, and nothing is left to a heuristic. Without a mesh every
function here leaves arrays as they are, so that one device runs the program of one device.
"""

from ratjax.sharding.heads import attend_by_heads, mean_over_heads, serve_by_heads
from ratjax.sharding.lookup import look_up
from ratjax.sharding.mesh import active_mesh, first_device, make_mesh, on_mesh, sizes_of
from ratjax.sharding.place import (
    constrain,
    gather,
    keep_no_gathers,
    manual,
    out_sharding,
    pick,
    split_batch,
)
from ratjax.sharding.recurrence import sharded_decay_scan
from ratjax.sharding.table import RULES, sharding, spec

__all__ = [
    "RULES",
    "active_mesh",
    "attend_by_heads",
    "constrain",
    "first_device",
    "gather",
    "keep_no_gathers",
    "look_up",
    "make_mesh",
    "manual",
    "mean_over_heads",
    "on_mesh",
    "out_sharding",
    "pick",
    "serve_by_heads",
    "sharded_decay_scan",
    "sharding",
    "sizes_of",
    "spec",
    "split_batch",
]
