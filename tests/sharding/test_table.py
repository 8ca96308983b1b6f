import jax
import pytest
from jax.sharding import PartitionSpec as P

from ratjax.config.mesh import AXES, MeshConfig
from ratjax.config.model import MemoryConfig
from ratjax.config.presets import PRESETS, with_memory
from ratjax.model.parameters import abstract_parameters
from ratjax.model.placement import PARAMETER_AXES, parameter_axes
from ratjax.sharding import RULES, active_mesh, make_mesh, spec


def test_specs():
    assert spec("batch", "time", "channels") == P(("data", "fsdp"), "context", None)
    assert spec("layers", "embed", "heads", "head_dim") == P(None, "fsdp", "tensor", None)
    assert spec("vocab", "embed") == P("tensor", "fsdp")
    assert spec(None, "batch") == P(None, ("data", "fsdp"))
    assert {axis for axes in RULES.values() for axis in axes} == set(AXES)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("heads", "mlp"), "'heads' and 'mlp' both fall on the mesh's axis 'tensor'"),
        (("batch", "embed"), "'batch' and 'embed' both fall on the mesh's axis 'fsdp'"),
        (("batch", "batch"), "both fall on the mesh's axis 'data'"),
        (("batch", "tme"), "'tme' is no logical axis"),
    ],
)
def test_refusals(axes, message):
    with pytest.raises(ValueError, match=message):
        spec(*axes)


@pytest.mark.parametrize("name", ["olmo2_7b", "ratplus_1b", "tiny"])
def test_every_parameter_has_axes_as_many_as_it_has_dimensions(name):
    config = with_memory(PRESETS[name], MemoryConfig())
    for parameter, array in abstract_parameters(config).items():
        axes = parameter_axes(parameter)
        assert len(axes) == array.ndim, parameter
        spec(*axes)  # no two of them on one axis of the mesh
        matrix = array.ndim - axes.count("layers") >= 2 and "norm" not in parameter
        assert ("embed" in axes) == (matrix and "bias" not in parameter), parameter


def test_the_parameters_that_only_some_models_have():
    assert PARAMETER_AXES["previous_embedding"] == PARAMETER_AXES["embedding"]
    assert parameter_axes("blocks/memory/bias") == ("layers", "kv_heads", "head_dim")


def test_a_mesh_of_one_device_is_a_mesh_and_none_is_active_without():
    mesh = make_mesh(MeshConfig(data=1))
    assert mesh.axis_names == AXES and mesh.devices.shape == (1, 1, 1, 1)
    assert active_mesh() is None
    with jax.set_mesh(mesh):
        assert active_mesh().shape == dict.fromkeys(AXES, 1)
