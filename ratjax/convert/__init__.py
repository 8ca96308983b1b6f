"""Published checkpoints in, Hugging Face folders out."""

from ratjax.convert.hugging_face import export
from ratjax.convert.run import convert, plan

__all__ = ["convert", "export", "plan"]
