"""A CPU that is several devices, for a process of its own: a process asks for them at its start."""

import os


def environment(count: int) -> dict[str, str]:
    """This process's variables, and those that make the CPU `count` devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
