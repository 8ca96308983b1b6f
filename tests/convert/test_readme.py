"""README's way from a repository id to a sentence under Quest, run as it stands there."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import ratjax
from convert.checkpoints import write_olmo2
from convert.measure_memory import ROOT
from ratjax.config.model import ModelConfig
from ratjax.sparsity.quest import Quest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the 1B's config.json says besides sizes, in the form of transformers 4.
PUBLISHED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.50.0",
    "use_cache": True,
}
SIZES = ModelConfig(320, 64, 2, 4, 4, 16, 256, rope_theta=500_000.0)  # the 1B's proportions


def section() -> tuple[str, str]:
    """README's command, and its Python: the imports named below the block, and the block."""
    text = (ROOT / "README.md").read_text().split("## From OLMo2 to a sentence under Quest")[1]
    text = text.split("\n## ")[0]
    command = re.search(r"`(python -m launch\.convert [^`]+)`", text)[1]
    block = re.search(r"```python\n(.+?)```", text, re.DOTALL)[1]
    imports = re.findall(r"`((?:import|from) [^`]+)`", text)
    return command, "\n".join([*imports, block])


@pytest.fixture
def hub(tmp_path):
    """A hub cache in which the repository is a small model of its form."""
    repository = tmp_path / "hub" / "models--allenai--OLMo-2-0425-1B"
    snapshot = write_olmo2(repository / "snapshots" / COMMIT, SIZES, files=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "t"), ("a", "n"), ("i", "o"), ("at", "t"), ("io", "n"), ("Ġ", "i")]
    vocab = {token: i for i, token in enumerate([*letters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    tokenizer.save(str(snapshot / "tokenizer.json"))

    config = json.loads((snapshot / "config.json").read_text())
    for name in ("rope_parameters", "dtype"):  # transformers 5's
        del config[name]
    ids = {"eos_token_id": len(vocab), "pad_token_id": len(vocab) + 1}
    del config["bos_token_id"]
    (snapshot / "config.json").write_text(json.dumps(config | PUBLISHED | ids))
    return tmp_path


def test_the_lines_in_the_readme(hub):
    command, code = section()
    env = {
        **os.environ,
        "HF_HUB_CACHE": str(hub / "hub"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    python, *arguments = shlex.split(command)
    assert python == "python"

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=hub, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    run(*arguments)
    printed = run("-c", code)

    folder = hub / "models" / "olmo2-1b"
    provenance = json.loads((folder / "model.json").read_text())["provenance"]
    assert provenance["source"] == "allenai/OLMo-2-0425-1B"
    assert provenance["revision"] == COMMIT
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = np.array([tokenizer.encode("Attention is").ids])
    quest = Quest(page_size=16, pages=8)
    found = ratjax.load(folder).generate(tokens, np.array([tokens.size]), 32, quest)
    assert printed == tokenizer.decode(found[0]) + "\n"
