"""Parity with PyTorch from stored outputs, where torch is not installed.

`tests/fixtures/make_parity.py` wrote them. Tolerance: float32 in another order of summation;
logits are of order 10, errors near 1e-5, so 1e-4 leaves room for other backends only.
"""

import pathlib

import numpy as np
import pytest

import ratjax
from ratjax.convert import convert, plan, ratplus
from ratjax.convert.layout import check
from ratjax.convert.tensors import Tensor
from ratjax.model.parameters import to_model
from ratjax.sparsity.dense import Dense
from ratjax.sparsity.dilated import Dilated

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("olmo2") / "model"
    convert(folder, plan(str(FIXTURES / "olmo2")))
    return ratjax.load(folder)


def test_olmo2_logits_and_greedy_continuation(olmo2):
    expected = np.load(FIXTURES / "olmo2" / "expected.npz")
    tokens = expected["tokens"]
    np.testing.assert_allclose(olmo2(tokens), expected["logits"], atol=1e-4, rtol=0)
    lengths = np.full(len(tokens), tokens.shape[1], np.int32)
    found = olmo2.generate(tokens, lengths, max_new_tokens=64)
    np.testing.assert_array_equal(found, expected["continuation"])


@pytest.fixture(scope="module")
def stored_ratplus():
    stored = np.load(FIXTURES / "ratplus.npz")
    tensors = {
        name.removeprefix("state/"): Tensor(value.shape, "F32", lambda value=value: value)
        for name, value in stored.items()
        if name.startswith("state/")
    }
    config = ratplus.infer_config(tensors, {}, "ratplus.npz", head_dim=8)
    layout = ratplus.layout(config, tensors)
    check(tensors, layout, "ratplus.npz")
    model = to_model(config, {name: place.read(tensors) for name, place in layout.items()})
    return model, stored


@pytest.mark.parametrize(
    ("kind", "pattern"), [("", Dense()), ("dilated", Dilated(4, 2, 1))], ids=["dense", "dilated"]
)
def test_ratplus_prefill_and_decode(stored_ratplus, kind, pattern):
    model, stored = stored_ratplus
    tokens = stored["tokens"][None]
    np.testing.assert_allclose(
        model(tokens, pattern)[0], stored[kind or "dense"], atol=1e-4, rtol=0
    )
    lengths = np.array([tokens.shape[1]], np.int32)
    found = model.generate(tokens, lengths, max_new_tokens=24, pattern=pattern)
    np.testing.assert_array_equal(found[0], stored[f"{kind}_continuation".lstrip("_")])
