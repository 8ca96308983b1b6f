"""Times the memory's scan, forward and backward, against its bytes, PyTorch and plain JAX.

The floor is bytes over the measured copy bandwidth: 10 an element forward (gate, k, v in, two out;
bfloat16) and 16 backward (gate, k, v and two gradients in, three gradients out). The peer of the
forward pass and of both together is PyTorch's compiled associative scan in the released code's
form; `xla_ms` is plain JAX.
"""

import jax
import jax.numpy as jnp
import timing
import torch_scan
from absl import app, flags

from ratjax_kernels import decay_scan

_TARGET = flags.DEFINE_string("target", "decay_scan.json", "Where the results go.")

CASES = {"4x4096": (4, 4096, 32, 128), "1x131072": (1, 131072, 16, 128)}


def _inputs(shape):
    keys = jax.random.split(jax.random.key(0), 7)
    wide = tuple(jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:5])
    narrow = (shape[0], *shape[2:])
    state = tuple(jax.random.normal(key, narrow) for key in keys[5:])
    return wide[:3], state, (wide[3:], state)


def _pieces(implementation, arrays, state):
    """Forward, backward alone on saved residuals, and both as one program."""

    def scan(arrays, state):
        return decay_scan(*arrays, state, True, implementation)

    def train(arrays, state, cotangents):
        out, pull = jax.vjp(scan, arrays, state)
        return out, pull(cotangents)

    _, pull = jax.jit(lambda arrays, state: jax.vjp(scan, arrays, state))(arrays, state)
    return jax.jit(scan), jax.jit(lambda pull, cotangents: pull(cotangents)), pull, jax.jit(train)


def main(_):
    bandwidth = timing.copy_bandwidth()
    rows = []
    for case, shape in CASES.items():
        arrays, state, cotangents = _inputs(shape)
        elements = arrays[0].size
        times = {}
        for name, calls in (("triton", 20), ("xla", 3)):
            forward, backward, pull, train = _pieces(name, arrays, state)
            times[name] = {
                "decay_scan_forward": timing.milliseconds(forward, arrays, state, calls=calls),
                "decay_scan_backward": timing.milliseconds(backward, pull, cotangents, calls=calls),
                "decay_scan_train": timing.milliseconds(
                    train, arrays, state, cotangents, calls=calls
                ),
            }
        del arrays, state, cotangents, forward, backward, pull, train
        torch_times = torch_scan.milliseconds(shape)
        # Bytes of an element, and its multiplications, additions and divisions (the logistic
        # function counts three).
        for op, size, work in (
            ("decay_scan_forward", 10, 9),
            ("decay_scan_backward", 16, 24),
            ("decay_scan_train", 26, 33),
        ):
            floor = 1e3 * elements * size / bandwidth
            plain = times["xla"][op]
            peer = (
                ("torch associative_scan", torch_times[op]) if op in torch_times else ("xla", plain)
            )
            more = {"xla_ms": plain, "bytes": elements * size, "flops": elements * work}
            rows.append(timing.row(op, case, shape, times["triton"][op], floor, *peer, **more))
    timing.finish(rows, {"copy_bytes_per_second": bandwidth}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
