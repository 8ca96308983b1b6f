"""The decoder and its parts."""

from ratjax.model.decoder import Decoder
from ratjax.model.generation import Generation, generate

__all__ = ["Decoder", "Generation", "generate"]
