"""What a result was measured with: versions and device."""

import datetime
import importlib.metadata
import platform
from typing import Any

import jax

PACKAGES = ("ratjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers")


def provenance() -> dict[str, Any]:
    """Versions, device and time, as JSON types."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "device": device.device_kind if device.platform != "cpu" else f"cpu ({platform.machine()})",
        "device_count": jax.device_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
