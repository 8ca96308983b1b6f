import dataclasses
import math

import pytest

from ratjax.ahead.suggest import candidates, hbm_bytes, meshes
from ratjax.ahead.topology import parse_topology
from ratjax.ahead.trials import ranked, trial
from ratjax.config.data import DataStage
from ratjax.config.mesh import MeshConfig
from ratjax.config.model import MemoryConfig
from ratjax.config.presets import preset, with_memory
from ratjax.config.train import TrainConfig

MODEL = dataclasses.replace(with_memory(preset("olmo2_7b"), MemoryConfig()), dtype="bfloat16")
STAGE = DataStage(10, 4096, 768, (("tokens", 1.0),), "two_step")
GIB = 2**30


def test_meshes_use_every_chip_and_divide_model_and_batch():
    found = list(meshes(64, MODEL, STAGE))
    assert len(found) == len(set(found)) > 20
    for mesh in found:
        assert math.prod(mesh.shape) == 64
        assert STAGE.batch_size % mesh.batch_shards == 0
        assert MODEL.num_heads % (mesh.tensor * mesh.context) == 0
    assert MeshConfig(1, 64, 1, 1) in found


def test_candidates_are_ordered_and_fit():
    topology = parse_topology("v5e-64")
    found = candidates(topology, MODEL, TrainConfig(), STAGE)
    assert found
    assert all(c.hbm_bytes <= topology.chip.hbm_bytes for c in found)
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)
    alike = [(c.mesh.tensor, c.mesh.context, c.microbatches, c.remat) for c in found]
    assert len(alike) == len(set(alike))
    assert not candidates(parse_topology("v5e:2x2"), MODEL, TrainConfig(), STAGE)


def test_less_memory_is_needed_with_more_of_everything():
    cut = MeshConfig(1, 64)

    def need(mesh=cut, microbatches=4, remat="save_attention"):
        return hbm_bytes(MODEL, TrainConfig(), STAGE, mesh, microbatches, remat)

    assert need(remat="full") < need() < need(remat="save_products") < need(remat="none")
    assert need(microbatches=12) < need(microbatches=3)
    assert need() < need(MeshConfig(4, 16))
    assert need(MeshConfig(1, 32, 2), microbatches=8) < need(MeshConfig(2, 32), microbatches=4)
    # State alone is 16 bytes a parameter over all chips.
    assert need(microbatches=1) > 16 * 7.8e9 / 64


def test_flags_choose_the_candidate():
    (first, *_) = candidates(parse_topology("v5p-128"), MODEL, TrainConfig(), STAGE)
    flags = first.flags()
    assert f"--config.mesh.fsdp={first.mesh.fsdp}" in flags
    assert f"--config.train.microbatches={first.microbatches}" in flags
    assert f"--config.model.remat={first.remat}" in flags


def test_trials():
    good = trial(["-c", "print('words'); print('{\"fits\": true}')"], 60.0)
    assert good == {"fits": True}
    bad = trial(["-c", "import sys; sys.exit('no such field')"], 60.0)
    assert bad == {"failed": "status 1: no such field"}
    slow = trial(["-c", "import time; time.sleep(30)"], 0.5)
    assert slow == {"failed": "not compiled within 0.5 s"}


def test_ranking():
    results = [
        {"fits": True, "step_seconds": 3},
        {"failed": "why"},
        {"fits": False},
        {"fits": True, "step_seconds": 2},
    ]
    assert [r["step_seconds"] for r in ranked(results)] == [2, 3]


@pytest.mark.parametrize("size", ["olmo2_1b", "olmo2_13b"])
def test_every_size_has_a_place(size):
    model = dataclasses.replace(with_memory(preset(size), MemoryConfig()), dtype="bfloat16")
    for pod in ("v5e-64", "v5p-128", "v6e-256"):
        assert candidates(parse_topology(pod), model, TrainConfig(), STAGE)
