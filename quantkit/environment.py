"""On what was this made? Versions and hardware, as an artifact's record keeps them."""

import logging
import os
import platform
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "quantkit",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "compressed-tensors",
    "torchao",
    "auto-round",
)
NOISE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "%s is an Enum subclass",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
"""Logger to what it says whenever transformers imports torchao, or peft bitsandbytes: that extensions were not loaded."""


def describe_environment(device: str) -> dict[str, str | int]:
    """Return versions, platform and the device's own name as plain JSON data."""
    facts: dict[str, str | int] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": device,
        "device_name": _device_name(device),
        "cpu_count": os.cpu_count() or 0,
    }
    return facts | {name: found for name in PACKAGES if (found := _version(name))}


def quiet_libraries() -> None:
    """Drop the log lines of `NOISE`, about which nobody can do anything; call it before transformers is imported."""
    for name, beginning in NOISE.items():
        logging.getLogger(name).addFilter(partial(_says_more, beginning))


def _says_more(beginning: str, record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(beginning)


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
