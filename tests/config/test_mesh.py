import dataclasses

import pytest

from ratjax.config.data import DataConfig, DataStage
from ratjax.config.experiment import Experiment
from ratjax.config.mesh import MeshConfig, check_data, check_model
from ratjax.config.model import ModelConfig
from ratjax.config.overrides import from_mapping, to_config_dict
from ratjax.config.presets import PRESETS
from ratjax.config.train import TrainConfig
from ratjax.errors import ConfigError

MODEL = ModelConfig(32, 16, 1, 4, 2, 4, 24)
TRAIN = TrainConfig(microbatches=2)
DATA = DataConfig((DataStage(1, 12, 16, (("rows", 1.0),)),))


def test_one_size_is_what_the_others_leave():
    assert MeshConfig().resolve(8) == MeshConfig(8, 1, 1, 1)
    assert MeshConfig(fsdp=4).resolve(8) == MeshConfig(2, 4, 1, 1)
    assert MeshConfig(2, -1, 2, 1).resolve(8) == MeshConfig(2, 2, 2, 1)
    resolved = MeshConfig(2, 1, 1, 4).resolve(8)
    assert (resolved.shape, resolved.size, resolved.batch_shards) == ((2, 1, 1, 4), 8, 2)


def test_all_ones_is_the_first_device_whatever_there_is():
    assert MeshConfig(data=1).resolve(8).size == 1
    assert MeshConfig().resolve(1).size == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 2, 1, 1), r"comes to 4, but there are 8 devices; set one to -1"),
        ((16, 1, 1, 1), r"comes to 16, but there are 8 devices"),
        ((-1, 3, 1, 1), r"mesh.data=-1: the 8 devices are no multiple of 3"),
    ],
)
def test_sizes_come_to_the_number_of_devices(sizes, message):
    with pytest.raises(ConfigError, match=message):
        MeshConfig(*sizes).resolve(8)


def test_sizes_are_counts():
    with pytest.raises(ConfigError, match=r"mesh.fsdp=0: must be at least 1"):
        MeshConfig(fsdp=0)
    with pytest.raises(ConfigError, match=r"mesh.tensor=-1: mesh.data is -1 too"):
        MeshConfig(tensor=-1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 3, 1, 1), r"mesh.fsdp=3: must divide model.hidden_size=16"),
        ((1, 1, 3, 1), r"mesh.tensor=3: must divide model.num_heads=4"),
        ((1, 1, 4, 1), r"mesh.tensor=4: must divide model.num_kv_heads=2"),
        ((1, 1, 2, 4), r"mesh.context=4: must divide the 2 query heads of a device"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_model(MeshConfig(*sizes), MODEL)


def test_feed_forward_channels_and_vocabulary_are_divided_too():
    mesh = MeshConfig(1, 1, 2, 1)
    for field in ("intermediate_size", "vocab_size"):
        with pytest.raises(ConfigError, match=rf"mesh.tensor=2: must divide model.{field}=33"):
            check_model(mesh, dataclasses.replace(MODEL, **{field: 33}))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 1, 1, 5), r"mesh.context=5: must divide data.stages.sequence_length=12"),
        ((4, 4, 1, 1), r"batch_size=16: over train.microbatches=2 leaves 8 sequences.* = 16 must"),
    ],
)
def test_a_mesh_that_does_not_divide_the_batches(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_data(MeshConfig(*sizes), TRAIN, DATA)


def test_published_models_fit_the_meshes_they_are_meant_for():
    for name, sizes in (
        ("olmo2_1b", (1, 64, 1, 1)),
        ("olmo2_7b", (2, 32, 4, 8)),
        ("olmo2_13b", (1, 256, 8, 5)),
        ("olmo2_32b", (1, 64, 8, 5)),
    ):
        check_model(MeshConfig(*sizes), PRESETS[name])


def test_the_mesh_is_a_field_of_an_experiment():
    config = to_config_dict(Experiment("tiny", MODEL))
    config.mesh.fsdp = 4
    assert from_mapping(Experiment, config).mesh == MeshConfig(fsdp=4)
