"""A model with its initial parameters, by one compiled program a configuration."""

import jax

from ratjax.config.model import ModelConfig
from ratjax.model import Decoder

_initial = jax.jit(lambda config, seed: Decoder(config, jax.random.key(seed)), static_argnums=0)


def initial(config: ModelConfig, seed: int = 0) -> Decoder:
    return _initial(config, seed)
