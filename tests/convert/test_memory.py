"""The memory that a conversion adds."""

import jax
import numpy as np
import pytest

import ratjax
from convert.checkpoints import write_olmo2
from ratjax.config.presets import preset
from ratjax.convert import convert, export, plan
from ratjax.convert.folder import open_tensors
from ratjax.model.parameters import is_memory
from ratjax.sparsity.quest import Quest

TINY = preset("tiny")
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 40))
LENGTHS = np.array([40, 33])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_olmo2(tmp_path_factory.mktemp("memory") / "hf", TINY)


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    convert(folder, plan(str(source)))
    return ratjax.load(folder)


def loaded(source, tmp_path, **options):
    convert(tmp_path / "model", plan(str(source), **options))
    return ratjax.load(tmp_path / "model")


def test_identity_reproduces_the_logits_exactly(source, plain, tmp_path):
    model = loaded(source, tmp_path, add_memory="identity")
    assert model.config.memory is not None
    np.testing.assert_array_equal(model(TOKENS), plain(TOKENS))
    quest = Quest(page_size=8, pages=2)
    np.testing.assert_array_equal(
        model.generate(TOKENS, LENGTHS, 12, pattern=quest),
        plain.generate(TOKENS, LENGTHS, 12, pattern=quest),
    )


def test_near_identity_is_as_near_as_its_bias(source, plain, tmp_path):
    moved = {}
    for bias in (-3.0, -9.0):
        model = loaded(source, tmp_path / str(bias), add_memory="near_identity", memory_bias=bias)
        memory = model.blocks.attention.memory
        assert not np.any(memory.weight[...])
        np.testing.assert_array_equal(memory.bias[...], np.float32(bias))
        moved[bias] = float(np.abs(model(TOKENS) - plain(TOKENS)).max())
    # To first order the logits move by g = sigmoid(bias), 384 times as much at -3 as at -9.
    assert 0 < moved[-9.0] < moved[-3.0] / 100


def test_ratplus_draws_the_published_start(source, tmp_path):
    model = loaded(source, tmp_path, add_memory="ratplus", seed=3)
    memory = model.blocks.attention.memory
    assert memory.bias is None
    weight = np.asarray(memory.weight[...])
    # 4096 draws: the standard deviation's own error is 0.02 / sqrt(2 * 4096) = 0.0002.
    assert abs(weight.std() - 0.02) < 0.001
    assert abs(weight.mean()) < 0.0015
    assert not np.array_equal(weight[0], weight[1])
    other = plan(str(source), add_memory="ratplus", seed=4).parts["blocks/attention/memory/weight"]
    assert not np.array_equal(other.read((slice(0, 1),) + (slice(None),) * 3)[0], weight[0])


def test_everything_but_the_memory_stays(source, tmp_path):
    plain, with_memory = plan(str(source)).parts, plan(str(source), add_memory="ratplus").parts
    assert [n for n in with_memory if n not in plain] == ["blocks/attention/memory/weight"]
    assert all(is_memory(n) for n in with_memory.keys() - plain.keys())


@pytest.mark.parametrize(
    ("choice", "dtype"),
    [(None, "F32"), (None, "BF16"), ("identity", "F32"), ("ratplus", "BF16")],
)
def test_round_trips_are_bit_exact(choice, dtype, tmp_path):
    """Hugging Face -> ours -> Hugging Face -> ours: the same bytes at both ends."""
    hf = write_olmo2(tmp_path / "hf", TINY, dtype, files=2, seed=5)
    convert(tmp_path / "a", plan(str(hf), add_memory=choice))
    export(tmp_path / "a", tmp_path / "back")
    convert(tmp_path / "b", plan(str(tmp_path / "back")))
    before, after = open_tensors(hf), open_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.shape, tensor.dtype) == (after[name].shape, after[name].dtype)
        assert tensor.view().tobytes() == after[name].view().tobytes(), name
    a, b = ratjax.inspect(tmp_path / "a"), ratjax.inspect(tmp_path / "b")
    assert a.config == b.config
    assert a.parameters == b.parameters
    for name in a.parameters:
        assert a.read(name).tobytes() == b.read(name).tobytes(), name


def test_large_exports_are_cut_into_files(source, tmp_path):
    convert(tmp_path / "ours", plan(str(source)))
    export(tmp_path / "ours", tmp_path / "hf", file_bytes=100_000)
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    before, after = open_tensors(source), open_tensors(tmp_path / "hf")
    for name, tensor in before.items():
        assert tensor.view().tobytes() == after[name].view().tobytes()


def test_a_stored_dtype_can_be_chosen(source, tmp_path):
    model = loaded(source, tmp_path, dtype="bfloat16")
    found = ratjax.inspect(tmp_path / "model")
    assert {p.dtype for p in found.parameters.values()} == {"bfloat16"}
    assert model.config.dtype == "bfloat16"
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model))
    export(tmp_path / "model", tmp_path / "hf", dtype="float32")
    assert {t.dtype for t in open_tensors(tmp_path / "hf").values()} == {"F32"}
