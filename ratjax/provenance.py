"""What a result was measured with: versions and device."""

import datetime
import importlib.metadata
import platform
from collections.abc import Iterable
from typing import Any

import jax

PACKAGES = ("ratjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed version of each package."""
    return {name: importlib.metadata.version(name) for name in packages}


def provenance() -> dict[str, Any]:
    """Versions, device and time, as JSON types."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **versions(),
        },
        "device": device.device_kind if device.platform != "cpu" else f"cpu ({platform.machine()})",
        "device_count": jax.device_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
