"""A trace of a few steps, for xprof or Perfetto."""

import pathlib

import jax


class Trace:
    """Traces the steps that `train.profile` names; does nothing where they are none.

    Args:
      folder: where the trace goes, in TensorBoard's layout.
      steps: to trace, from 1, one after another.
    """

    def __init__(self, folder: pathlib.Path, steps: range):
        self.folder, self.steps, self.running = folder, steps, False

    def before(self, step: int) -> None:
        """To be called before each step; begins with the first of the wanted ones that comes."""
        if step in self.steps and not self.running:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def after(self, step: int, outputs: object) -> None:
        """To be called after each step with its results, which the last one waits for."""
        if self.running and step >= self.steps[-1]:
            jax.block_until_ready(outputs)
            self.close()
            print(f"steps up to {step} traced: {self.folder}", flush=True)

    def close(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
