"""Live parity with transformers, in both directions."""

import json

import numpy as np
import pytest

import ratjax
from ratjax.convert import convert, export, plan

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

# torch and transformers warn about their own future; that is not ours to mend.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

THETA = 1000.0  # of RoPE: no version's default, so that one that is not read shows

# (hidden, layers, heads, kv heads, intermediate, vocab, tied): MHA, GQA, MQA, 32B's 5:1, and
# the head size of the published models.
SHAPES = {
    "mha": (64, 2, 4, 4, 96, 101, False),
    "gqa": (96, 3, 6, 2, 160, 128, False),
    "mqa_tied": (64, 2, 4, 1, 64, 80, True),
    "five_to_one": (80, 2, 10, 2, 96, 64, False),
    "head_of_128": (256, 1, 2, 1, 128, 64, False),
}
# Each length is one program: 1 to 512, the edges of powers of two among them.
LENGTHS = {"gqa": (1, 2, 3, 17, 64, 127, 128, 511, 512), "mha": (1, 512)}


def random_olmo2(shape):
    hidden, layers, heads, kv_heads, intermediate, vocab, tied = shape
    torch.manual_seed(1)
    config = transformers.Olmo2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_theta=THETA,  # both forms of config understand it here
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.Olmo2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a norm that is misplaced
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def pair(request, tmp_path_factory):
    """(name, the PyTorch model, its folder, our folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = random_olmo2(SHAPES[request.param])
    theirs.save_pretrained(folder / "hf", max_shard_size="100KB")
    convert(folder / "ours", plan(str(folder / "hf")))
    return request.param, theirs, folder / "hf", folder / "ours"


def test_logits(pair):
    name, theirs, _, folder = pair
    ours = ratjax.load(folder)
    for length in LENGTHS.get(name, (40,)):
        tokens = np.random.default_rng(length).integers(0, ours.config.vocab_size, (2, length))
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens)).logits.numpy()
        # The bound the project promises; measured: at most 6e-6, at logits up to 4.5.
        np.testing.assert_allclose(ours(tokens), expected, atol=1e-4, rtol=0)


FORMS = {
    "top_level": {"rope_theta": THETA},
    "nested": {"rope_parameters": {"rope_theta": THETA, "rope_type": "default"}},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rope_settings_in_either_form(form, tmp_path):
    """As transformers 4 and 5 write them, whichever of them is here."""
    theirs = random_olmo2(SHAPES["gqa"])
    theirs.save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    for name in ("rope_theta", "rope_parameters", "rope_scaling"):
        config.pop(name, None)
    path.write_text(json.dumps(config | form))
    convert(tmp_path / "ours", plan(str(tmp_path / "hf")))
    tokens = np.random.default_rng(0).integers(0, config["vocab_size"], (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ratjax.load(tmp_path / "ours")(tokens), expected, atol=1e-4, rtol=0)


def test_greedy_continuations(pair):
    _, theirs, _, folder = pair
    ours = ratjax.load(folder)
    tokens = np.random.default_rng(5).integers(0, ours.config.vocab_size, (2, 19))
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(tokens),
            attention_mask=torch.ones(2, 19, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=64,
        )[:, 19:]
    found = ours.generate(tokens, np.array([19, 19]), max_new_tokens=64)
    np.testing.assert_array_equal(found, expected.numpy())


def test_transformers_loads_what_is_exported_bit_for_bit(pair, tmp_path):
    _, theirs, _, folder = pair
    export(folder, tmp_path / "hf")
    back = transformers.Olmo2ForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    expected, found = theirs.state_dict(), back.state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name]), name
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, back(tokens).logits)


def test_transformers_loads_an_export_with_memory_and_ignores_the_memory(pair, tmp_path):
    _, theirs, source, _ = pair
    convert(tmp_path / "ours", plan(str(source), add_memory="near_identity"))
    export(tmp_path / "ours", tmp_path / "hf")
    back, info = transformers.Olmo2ForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, back.state_dict()[name])
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["ratjax_memory"]


def test_bfloat16_weights_of_transformers(tmp_path):
    theirs = random_olmo2(SHAPES["gqa"]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "ours", plan(str(tmp_path / "hf")))
    tokens = np.arange(30)[None]
    # Loaded anew: `.float()` would keep RoPE's frequencies as bfloat16 had rounded them.
    theirs = transformers.Olmo2ForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    found = ratjax.load(tmp_path / "ours", dtype="float32")(tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
