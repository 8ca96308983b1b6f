import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.errors import InputError
from ratjax.model import Decoder
from ratjax.model.checkpoint import load_model, newest_step, save_model
from ratjax.model.parameters import abstract_parameters, is_memory, to_model, to_parameters

CONFIG = ModelConfig(48, 16, 2, 2, 1, 8, 24, memory=MemoryConfig(init_bias=-3.0))


def random_model(config=CONFIG):
    rng = np.random.default_rng(0)
    arrays = {
        name: jnp.asarray(rng.normal(size=array.shape), jnp.float32)
        for name, array in abstract_parameters(config).items()
    }
    return to_model(config, arrays)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    def make(size):
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        words = {f"w{n}": n for n in range(size)}
        tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(path))
        return path

    return make


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer_file):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, random_model(), tokenizer_file(48), {"source": "a test"})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def test_names_and_the_memory_rule():
    names = set(abstract_parameters(CONFIG))
    assert {"embedding", "norm/weight", "blocks/attention/w_q", "head"} <= names
    memory = {name for name in names if is_memory(name)}
    assert memory == {"blocks/attention/memory/weight", "blocks/attention/memory/bias"}
    assert names - memory == set(abstract_parameters(dataclasses.replace(CONFIG, memory=None)))


def test_parameters_and_model_are_two_forms_of_one_thing():
    model = random_model()
    again = to_model(CONFIG, to_parameters(model))
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert isinstance(again, Decoder) and again.config == CONFIG
    for one, other in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert one is other


@pytest.mark.parametrize("where", ["", "checkpoints/0"])
def test_round_trip(saved, where):
    model = load_model(saved / where)
    assert model.config == CONFIG
    expected = to_parameters(random_model())
    for name, value in to_parameters(model).items():
        assert value.dtype == jnp.float32
        assert value.sharding == jax.sharding.SingleDeviceSharding(jax.devices()[0])
        assert np.array_equal(value, expected[name]), name


def test_compute_dtype_can_be_chosen(saved):
    assert load_model(saved, dtype="bfloat16").config == dataclasses.replace(
        CONFIG, dtype="bfloat16"
    )
    with pytest.raises(InputError, match=r"model.dtype='int8'"):
        load_model(saved, dtype="int8")


def test_card(saved):
    card = json.loads((saved / "model.json").read_text())
    assert card["provenance"] == {"source": "a test"}
    assert card["model"]["memory"]["init_bias"] == -3.0
    assert set(card["versions"]) == {"ratjax", "jax", "flax", "orbax-checkpoint"}
    assert (saved / "tokenizer.json").exists()


def test_saving_is_all_or_nothing(saved, tmp_path, tokenizer_file, monkeypatch):
    before = sorted(saved.rglob("*"))
    with pytest.raises(InputError, match="exists and is not empty"):
        save_model(saved, random_model(), None, {})
    assert sorted(saved.rglob("*")) == before
    with pytest.raises(InputError, match=r"model.vocab_size=48: is less than the 49 tokens"):
        save_model(tmp_path / "new", random_model(), tokenizer_file(49), {})

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("ratjax.model.checkpoint.seal", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(tmp_path / "new", random_model(), None, {})
    assert list(tmp_path.iterdir()) == []


def test_every_file_that_is_shortened_or_missing_is_noticed(folder):
    files = [f for f in (folder / "checkpoints" / "0").rglob("*") if f.is_file()]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        if content and file.name != "files.json":
            file.write_bytes(content[:-1])
            with pytest.raises(InputError, match=f"damaged: .*{file.name} has") as raised:
                load_model(folder)
            assert "\n" not in str(raised.value)
        if file.name != "files.json":
            file.unlink()
            with pytest.raises(InputError, match=f"damaged: .*{file.name} is missing"):
                load_model(folder)
        file.write_bytes(content)
    load_model(folder)


def edit(folder, change):
    path = folder / "model.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "no model here"),
        (lambda f: (f / "model.json").write_text("{"), "model.json: not readable as JSON"),
        (lambda f: (f / "model.json").write_text("{}"), "has no field 'model'"),
        (
            lambda f: edit(f, lambda card: card["model"].update(hiden_size=3)),
            "hiden_size: unknown field; did you mean hidden_size",
        ),
        (
            lambda f: edit(f, lambda card: card["model"].update(num_kv_heads=3)),
            "model.num_kv_heads=3: must divide",
        ),
        (
            lambda f: edit(f, lambda card: card["model"].update(intermediate_size=20)),
            "not a checkpoint of this model: blocks/mlp/w_down",
        ),
        (
            lambda f: edit(f, lambda card: card["model"].update(memory=None)),
            r"memory/bias has shape \(2, 1, 8\) there, None by the model's config",
        ),
        (
            lambda f: edit(f, lambda card: card["model"].update(vocab_size=47)),
            "model.vocab_size=47: is less than the 48 tokens",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "not readable as a tokenizer"),
        (lambda f: shutil.rmtree(f / "checkpoints"), "has no checkpoint yet"),
        (lambda f: shutil.rmtree(f / "checkpoints" / "0" / "params"), "damaged: params/"),
    ],
)
def test_bad_folders_are_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


def test_missing_folder_and_step(saved, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="7: no such checkpoint; steps there: 0"):
        load_model(saved, step=7)


def test_without_a_seal_an_unreadable_checkpoint_is_still_one_error(folder):
    step = folder / "checkpoints" / "0"
    (step / "files.json").unlink()
    load_model(folder)
    (step / "params" / "_METADATA").unlink()
    with pytest.raises(InputError, match="damaged: cannot be read"):
        load_model(folder)


def test_the_newest_step_is_the_largest_number(folder):
    shutil.copytree(folder / "checkpoints" / "0", folder / "checkpoints" / "10")
    shutil.copytree(folder / "checkpoints" / "0", folder / "checkpoints" / "9")
    (folder / "checkpoints" / "11.damaged").mkdir()
    assert newest_step(folder) == 10
