"""What XLA and libtpu are told on accelerators: every flag with its reason, source and date.

A flag that is in no table is the compiler's default. None of these was timed by this project, which
has not run on a TPU; that libtpu knows each of them is tested (tests/pods/test_xla_flags.py).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
      name: without the dashes.
      value: as it is written.
      reason: what it is for.
      source: who found it to help.
      date: year and month in which the source was read.
      chips: kinds of chips that it is for; empty: all.
      several_slices: only for pods of more than one slice.
    """

    name: str
    value: str
    reason: str
    source: str
    date: str
    chips: tuple[str, ...] = ()
    several_slices: bool = False

    def __str__(self):
        return f"--{self.name}={self.value}"


TPU_FLAGS = (
    Flag(
        "xla_tpu_scoped_vmem_limit_kib",
        "98304",
        "Lets fusions use three quarters of a chip's 128 MiB of VMEM: larger tiles, fewer passes.",
        "MaxText benchmarks/xla_flags_library.py (dense models), AXLearn compiler_options.py",
        "2026-11",
        chips=("v6e",),
    ),
    Flag(
        "xla_tpu_scoped_vmem_limit_kib",
        "50000",
        "Likewise; what Marin trains with on these chips.",
        "Marin lib/fray/src/fray/types.py, default_env_vars",
        "2026-11",
        chips=("v5e", "v5p"),
    ),
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "true",
        "Gradients travel between slices while the next layer's are computed.",
        "MaxText xla_flags_library.py (DATA_PARALLEL_OVERLAP), AXLearn compiler_options.py",
        "2026-11",
        several_slices=True,
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "true",
        "The same across iterations of a loop, for arrays of different sizes.",
        "MaxText xla_flags_library.py (DATA_PARALLEL_OVERLAP), AXLearn compiler_options.py",
        "2026-11",
        several_slices=True,
    ),
    Flag(
        "megascale_graph_hang_threshold",
        "10m",
        "A slice that waits five minutes, the default, is taken for hung: restoring a checkpoint "
        "can take longer.",
        "AXLearn compiler_options.py; MaxText's notes on debugging several slices",
        "2026-11",
        several_slices=True,
    ),
    Flag(
        "megascale_graph_within_launch_hang_threshold",
        "10m",
        "The same within one launch, where the default is one minute.",
        "AXLearn compiler_options.py",
        "2026-11",
        several_slices=True,
    ),
    Flag(
        "megascale_error_reporter_abort_on_hang",
        "true",
        "A hung pod ends, so that it can be started again, and is not paid for in silence.",
        "AXLearn compiler_options.py",
        "2026-11",
        several_slices=True,
    ),
    Flag(
        "megascale_error_reporter_abort_on_error",
        "true",
        "The same after an error that no slice recovers from.",
        "AXLearn compiler_options.py",
        "2026-11",
        several_slices=True,
    ),
    Flag(
        "megascale_grpc_premap_memory_bytes",
        str(16 * 2**30),
        "Buffers for what slices exchange: with the default, 4 GiB, large models took twice as "
        "long a step.",
        "AXLearn compiler_options.py",
        "2026-11",
        several_slices=True,
    ),
)

GPU_FLAGS = (
    Flag(
        "xla_gpu_enable_latency_hiding_scheduler",
        "true",
        "Gathers and reductions of one layer run while another is computed.",
        "docs.jax.dev, GPU performance tips",
        "2026-11",
    ),
)


def tpu_flags(chip: str, slices: int) -> tuple[Flag, ...]:
    """The flags for a pod.

    Args:
      chip: as `ratjax.ahead.topology` names it.
      slices: of the pod.
    """
    return tuple(
        flag
        for flag in TPU_FLAGS
        if (not flag.chips or chip in flag.chips) and (slices > 1 or not flag.several_slices)
    )


def joined(flags: tuple[Flag, ...]) -> str:
    """Flags as an environment variable holds them."""
    return " ".join(map(str, flags))
