"""Times one dense decode step over a full cache against the cache's bytes and PyTorch's attention.

The floor is one read of all keys and values at the measured read bandwidth.
"""

import timing
from absl import app, flags
from caches import queries_and_cache

from ratjax_kernels import dense_decode

_TARGET = flags.DEFINE_string("target", "dense_decode.json", "Where the results go.")

HEADS, CHANNELS = 32, 128
SHAPES = {"16x32768": (16, 32768), "4x131072": (4, 131072), "1x32768": (1, 32768)}
CASES = {
    name + suffix: (*shape, kv_heads)
    for suffix, kv_heads in (("", 32), ("-kv8", 8))
    for name, shape in SHAPES.items()
}


def ours(batch, slots, kv_heads) -> float:
    """Milliseconds of a step in a loop of steps, as in generation: what one gives is asked next."""
    q, *cache = queries_and_cache(batch, slots, HEADS, kv_heads, CHANNELS)
    steps = 50 if batch * slots > 2**17 else 500
    return timing.chained_milliseconds(dense_decode, q, *cache, steps=steps)


def theirs(batch, slots, kv_heads) -> float:
    import torch

    def random(heads, length):
        shape = (batch, heads, length, CHANNELS)
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    q, k, v = random(HEADS, 1), random(kv_heads, slots), random(kv_heads, slots)
    attend = torch.nn.functional.scaled_dot_product_attention
    ms = timing.torch_milliseconds(lambda: attend(q, k, v, enable_gqa=kv_heads != HEADS))
    del q, k, v
    torch.cuda.empty_cache()
    return ms


def main(_):
    bandwidth = timing.read_bandwidth()
    rows = []
    for case, (batch, slots, kv_heads) in CASES.items():
        size = 2 * batch * slots * kv_heads * CHANNELS * 2
        ms, peer = ours(batch, slots, kv_heads), theirs(batch, slots, kv_heads)
        shape = (batch, slots, HEADS, kv_heads, CHANNELS)
        floor = 1e3 * size / bandwidth
        more = {"bytes": size, "flops": 4 * batch * slots * HEADS * CHANNELS}
        rows.append(timing.row("dense_decode", case, shape, ms, floor, "torch SDPA", peer, **more))
    timing.finish(rows, {"read_bytes_per_second": bandwidth}, _TARGET.value)


if __name__ == "__main__":
    app.run(main)
