import importlib.util
import os
import subprocess
import sys

import pytest

from ratjax.ahead import libtpu
from ratjax.ahead.roofline import roofline
from ratjax.ahead.topology import CHIPS, parse_topology
from ratjax.errors import InputError


@pytest.mark.parametrize(
    ("name", "full", "chips", "hosts", "accelerator", "wrapped"),
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64, 16, "v5p-128", (True,) * 3),
        ("v5p-128", "v5p:4x4x4", 64, 16, "v5p-128", (True,) * 3),
        ("v5p:2x2x1", "v5p:2x2x1", 4, 1, "v5p-8", (False,) * 3),
        ("v5e-64", "v5e:8x8", 64, 16, "v5litepod-64", (False, False)),
        ("v5litepod-8", "v5e:2x4", 8, 1, "v5litepod-8", (False, False)),
        ("v5e-16", "v5e:4x4", 16, 4, "v5litepod-16", (False, False)),
        ("v6e-256", "v6e:16x16", 256, 64, "v6e-256", (True, True)),
        ("v6e:8x16", "v6e:8x16", 128, 32, "v6e-128", (False, True)),
        ("v5e:1x1", "v5e:1x1", 1, 1, "v5litepod-1", (False, False)),
    ],
)
def test_names(name, full, chips, hosts, accelerator, wrapped):
    topology = parse_topology(name)
    assert str(topology) == full
    assert (topology.chips, topology.hosts, topology.wrapped) == (chips, hosts, wrapped)
    assert topology.accelerator_type == accelerator


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p:4x4", "v5p has 3 axes; write one as v5p:4x4x4"),
        ("v6e:0x4", "v6e has 2 axes"),
        ("v5:2x2x1", "no chip 'v5'; did you mean"),
        ("v6e-250", "no such slice; v6e-128 or v6e-256 can be rented"),
        ("v5p-100000", "no such slice; v5p-8192 can be rented"),
        ("v5p", "write one as v5p:4x4x4"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_topology(name)
    assert str(raised.value).startswith(f"--topology={name}")


def test_every_chip_has_a_peak():
    assert {name: chip.peak_flops for name, chip in CHIPS.items()} == {
        "v5e": 197e12,
        "v5p": 459e12,
        "v6e": 918e12,
    }


def test_roofline():
    line = roofline(CHIPS["v6e"], executed=2 * 918e12, moved=1600e9, received=1200e9, model=918e12)
    assert (line.compute, line.memory, line.network) == (2, 1, 3)
    assert (line.seconds, line.without_overlap, line.bound) == (3, 6, "network")
    assert line.mfu == pytest.approx(1 / 3)


def test_libtpu_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(InputError, match="make setup-tpu"):
        libtpu.use_libtpu()
    assert libtpu.version() is None


def test_libtpu_beside_the_environment(monkeypatch, tmp_path):
    """Where `make setup-tpu` puts it; what the environment says already is kept."""
    monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    library = tmp_path / "tpu" / "libtpu" / "libtpu.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "tpu" / "libtpu-1.2.3.dist-info").mkdir()
    (tmp_path / "tpu" / "libtpu-1.2.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: libtpu\nVersion: 1.2.3\n"
    )
    for name in (*libtpu.ENVIRONMENT, "TPU_LIBRARY_PATH"):
        monkeypatch.setenv(name, "")  # what is set meanwhile is undone, also where nothing was
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "elsewhere")
    libtpu.use_libtpu()
    assert os.environ["TPU_LIBRARY_PATH"] == str(library)
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "elsewhere"
    assert libtpu.version() == "1.2.3"


TOPOLOGIES = """
from ratjax.ahead.topology import parse_topology
for name in ("v5e:1x1", "v5e-64", "v5p-128", "v6e-256"):
    devices = parse_topology(name).devices()
    assert devices[0].device_kind == parse_topology(name).chip.device_kind
    print(len(devices), {device.platform for device in devices})
"""


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_compiler_knows_them():
    """In a process without any of the variables that libtpu needs."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("TPU", "JAX"))}
    done = subprocess.run(
        [sys.executable, "-c", TOPOLOGIES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{n} {{'tpu'}}" for n in (1, 64, 64, 256)]
