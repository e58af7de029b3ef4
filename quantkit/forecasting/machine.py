"""In which data types will a run compute on this machine, told without importing torch?

By the flags of the processor: what `quantkit.modeling.resolve_compute_dtype` and `quantkit.training.precision` find out by
asking torch and by timing a product. A forecast says which it assumes, and `--compute-dtype` overrides it.
"""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
HALF = {"avx512_bf16", "amx_bf16"}
"""Flags of processors that multiply bfloat16 faster than float32."""


def expected_dtypes(device: str, compute_dtype: str = "auto") -> tuple[str, str]:
    """Return the data type that a base is loaded in and the one that training computes in.

    >>> expected_dtypes("cuda"), expected_dtypes("cpu", "float32")
    (('bfloat16', 'bfloat16'), ('float32', 'float32'))
    """
    if compute_dtype != "auto":
        return compute_dtype, compute_dtype
    if device != "cpu":
        return "bfloat16", "bfloat16"
    flags = cpu_flags()
    return ("bfloat16" if "amx_tile" in flags else "float32"), ("bfloat16" if HALF & flags else "float32")


def cpu_flags() -> set[str]:
    """Return the flags of the first processor; empty where the system does not tell."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))), set())
