"""Makes what an experiment trains on, where it is missing: its `data.prepare` function.

`launch.train` does this by itself; as a command of its own it runs once before two trainings
that start side by side.
"""

from absl import flags

from launch import command

command.define_config()
flags.adopt_module_key_flags(command)


def main() -> None:
    experiment = command.experiment()
    if experiment.data.prepare:
        command.resolve(experiment.data.prepare)(experiment)


if __name__ == "__main__":
    command.run(main)
