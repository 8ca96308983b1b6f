"""Training: the step, the loop around it, and what it leaves on disk."""

from ratjax.train.loop import TrainingStopped, train

__all__ = ["TrainingStopped", "train"]
