"""Training: the step, the loop around it, and what it leaves on disk."""

from ratjax.train.loop import train
from ratjax.train.stopping import TrainingStopped

__all__ = ["TrainingStopped", "train"]
