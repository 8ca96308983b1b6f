"""A small byte-level BPE and the essays shipped with the project, so that nothing is fetched."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ratjax.needle import Essays, load_essays, wording
from ratjax.needle.essays import SHIPPED

EOS = "<|endoftext|>"


@pytest.fixture(scope="session")
def essays() -> Essays:
    return load_essays(SHIPPED)


@pytest.fixture(scope="session")
def tokenizer(essays) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    templates = [
        wording.opening(kind, single) + wording.NOISE + wording.question(kind, ["key"], single)
        for kind in ("numbers", "uuids")
        for single in (True, False)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([essays.text, *templates * 50], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def eos_id(tokenizer) -> int:
    return tokenizer.token_to_id(EOS)
