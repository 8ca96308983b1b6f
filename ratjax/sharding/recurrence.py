"""The memory's recurrence with sequences cut over devices: each passes its state on.

A device's part of a sequence is an affine map of the state that enters it,

    leaving = keep * entering + last,

with `keep` the product of its gates and `last` what its own part alone would leave behind. Each
device works out its own pair, all exchange theirs, which are small, and each composes those before
it into the state that enters its part. The product is the exponential of a sum of logarithms:
where it underflows, nothing of the state is left, and no quotient is formed anywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ratjax.shapes import HeadState, Keys, Values
from ratjax.sharding.mesh import active_mesh
from ratjax.sharding.place import manual
from ratjax_kernels import decay_scan

_WIDE = ("batch", "time", "kv_heads", "head_dim")
_STATE = ("batch", "kv_heads", "head_dim")

Scanned = tuple[tuple[Keys, Values], tuple[HeadState, HeadState]]


def sharded_decay_scan(gate_logits: Float[Array, "B S G D"], k: Keys, v: Values) -> Scanned:
    """`decay_scan` from a state of zero, with the last state, wherever its arrays lie.

    Args:
      gate_logits: [B, T, G, D] gates before the logistic function.
      k: keys, likewise.
      v: values.

    Returns:
      ((k_mem, v_mem), (k_T, v_T)), the states in float32.
    """
    mesh = active_mesh()
    if mesh is None:
        return decay_scan(gate_logits, k, v, return_state=True)
    devices = mesh.shape["context"]

    def local(gate_logits, k, v):
        if devices == 1:
            (k, v), state = decay_scan(gate_logits, k, v, return_state=True)
            return k, v, *state
        entering = _entering(gate_logits, k, v, devices)
        (k, v), state = decay_scan(gate_logits, k, v, entering, return_state=True)
        last = jax.lax.axis_index("context") == devices - 1
        return k, v, *(jax.lax.psum(jnp.where(last, x, 0), "context") for x in state)

    # Every array is cut along every axis but the states along `context`, where they are equal.
    scan = manual(local, (_WIDE,) * 3, [_WIDE, _WIDE, _STATE, _STATE], check_vma=False)
    k, v, *state = scan(gate_logits, k, v)
    return (k, v), tuple(state)


def _entering(gate_logits, k, v, devices) -> tuple[HeadState, HeadState]:
    """The state that enters this device's part."""
    _, last = decay_scan(gate_logits, k, v, return_state=True)
    keep = jnp.exp(jax.nn.log_sigmoid(gate_logits.astype(jnp.float32)).sum(1))
    keep, *last = (jax.lax.all_gather(x, "context") for x in (keep, *last))

    def step(state, pair):
        keep, *last = pair
        return tuple(keep * s + x for s, x in zip(state, last, strict=True)), state

    zeros = tuple(jnp.zeros_like(x[0]) for x in last)
    _, before = jax.lax.scan(step, zeros, (keep, *last))
    return tuple(x[jax.lax.axis_index("context")] for x in before)
