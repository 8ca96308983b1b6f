"""Where arrays lie: the mesh, the logical axes of arrays, and the one table between them.

Code names the axes of an array by what they mean (`batch`, `heads`); `table.RULES` says which
axis of the mesh each is cut along. The mesh's axes are explicit: an array's type says how it is
cut, JAX refuses what it cannot infer, and nothing is left to a heuristic. Without a mesh every
function here leaves arrays as they are, so that one device runs the program of one device.
"""

from ratjax.sharding.mesh import active_mesh, first_device, make_mesh, sizes_of, use_mesh
from ratjax.sharding.table import RULES, sharding, spec

__all__ = [
    "RULES",
    "active_mesh",
    "first_device",
    "make_mesh",
    "sharding",
    "sizes_of",
    "spec",
    "use_mesh",
]
