"""What a conversion reads and holds: parts of tensors, and one parameter at a time."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import ratjax
from convert.checkpoints import write_olmo2
from convert.measure_memory import ROOT, measure
from ratjax.config.presets import preset
from ratjax.convert import convert, plan
from ratjax.convert.olmo2 import layout
from ratjax.convert.safetensors_file import read_header

TINY = preset("tiny")


def test_any_part_of_a_parameter_is_what_slicing_the_whole_gives(tmp_path):
    source = write_olmo2(tmp_path / "hf", TINY)
    tensors = read_header(source / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, placement in layout(TINY).items():
        whole = placement.read(tensors)
        assert whole.shape == placement.shape
        for _ in range(5):
            bounds = [sorted(rng.integers(0, n + 1, 2)) for n in placement.shape]
            index = tuple(slice(int(a), int(b)) for a, b in bounds)
            np.testing.assert_array_equal(placement.read(tensors, index), whole[index], name)


def test_parameters_against_the_definition(tmp_path):
    """[out, in] becomes per-head [in, heads, head_dim], and back for the output."""
    source = write_olmo2(tmp_path / "hf", TINY)
    tensors = read_header(source / "model.safetensors")
    parts = plan(str(source)).parts
    prefix = "model.layers.1.self_attn."
    x = np.random.default_rng(0).standard_normal(TINY.hidden_size).astype(np.float32)

    def ours(name):
        return parts[name].read(tuple(slice(None) for _ in parts[name].shape))

    q = np.einsum("m,mhd->hd", x, ours("blocks/attention/w_q")[1])
    # Sums of 64 products of order 0.1 in float32, in two orders.
    np.testing.assert_allclose(
        q.reshape(-1), tensors[prefix + "q_proj.weight"].view() @ x, atol=1e-5
    )
    out = np.einsum("hd,hdm->m", q, ours("blocks/attention/w_out")[1])
    expected = tensors[prefix + "o_proj.weight"].view() @ q.reshape(-1)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    k_norm = tensors[prefix + "k_norm.weight"].view().reshape(TINY.num_kv_heads, -1)
    np.testing.assert_array_equal(ours("blocks/attention/k_norm/weight")[1], k_norm)


HOST = """
import json, sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from ratjax.convert import convert, plan
from ratjax.convert.layout import Placement
reads = []
original = Placement.read
def read(self, tensors, index=None):
    out = original(self, tensors, index)
    bounds = [s.indices(n)[:2] for s, n in zip(index, self.shape)]
    reads.append((self.keys[0] + str(self.start), bounds, out.nbytes))
    return out
Placement.read = read
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('devices',))
assert len(jax.local_devices()) == 2 and mesh.size == 4
convert(sys.argv[4], plan(sys.argv[3], add_memory='ratplus'), mesh=mesh)
print(json.dumps(reads))
"""


def test_two_hosts_read_their_own_halves_and_write_one_checkpoint(tmp_path):
    """Two processes with two CPU devices each, as two hosts of a pod that share a disk."""
    source = write_olmo2(tmp_path / "hf", TINY, "BF16", files=2)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", HOST, address]
    hosts = [
        subprocess.Popen(
            [*command, str(number), str(source), str(tmp_path / "pod")],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    results = [host.communicate(timeout=240) for host in hosts]
    for host, (_, error) in zip(hosts, results, strict=True):
        assert host.returncode == 0, error
    reads = [json.loads(out.splitlines()[-1]) for out, _ in results]

    total = sum(part.nbytes for part in plan(str(source)).parts.values())
    for own in reads:
        # Half of everything; only what 4 devices do not divide is read by both (here the q- and
        # k-norms and such stacks of 2 layers are divided along another axis, so: nothing).
        assert sum(nbytes for _, _, nbytes in own) == total / 2
    ranges = [{(name, str(bounds)) for name, bounds, _ in own} for own in reads]
    assert not ranges[0] & ranges[1]

    convert(tmp_path / "alone", plan(str(source), add_memory="ratplus"))
    alone, pod = ratjax.inspect(tmp_path / "alone"), ratjax.inspect(tmp_path / "pod")
    assert alone.config == pod.config
    for name in alone.parameters:
        np.testing.assert_array_equal(alone.read(name), pod.read(name))
    tokens = np.arange(12)[None]
    np.testing.assert_array_equal(
        ratjax.load(tmp_path / "alone")(tokens), ratjax.load(tmp_path / "pod")(tokens)
    )


@pytest.mark.slow
def test_peak_memory_is_one_parameter_and_not_the_model(tmp_path):
    """The bound of a 7B conversion (largest stacked parameter + 4 GB), scaled down.

    Here all parameters are 1.5 GB, the largest 0.27 GB. What the process holds beyond its idle
    0.3 GB or so may be the largest parameter a few times over (made, compressed, mapped), but
    not the model.
    """
    import dataclasses

    config = dataclasses.replace(
        preset("olmo2_1b"), num_layers=8, vocab_size=65536, intermediate_size=8192
    )
    source = write_olmo2(tmp_path / "hf", config, "BF16", files=4)
    found = measure(source, tmp_path / "target")
    assert found["peak"] - found["idle"] < 4 * found["largest"]
    assert found["total"] > 5 * found["largest"]
