"""What of a run's memory cannot be counted from shapes, and how large is it?

Each number with where it comes from. `quantkit.forecasting.learning` fits those of a machine to what its runs measured;
these are what a machine starts with. Folding them into one factor over everything would hide which part is wrong.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

GIB = 1 << 30
MIB = 1 << 20
MEASURED_TOKENS = 1055
"""Tokens of the fullest batch of the runs on a CPU that quantkit's constants were fitted to (`benchmarks/forecast.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Sizes and ratios that are measured, not counted."""

    process_bytes: int = 520 * MIB
    """Resident memory of a CPU process with torch, transformers, peft and bitsandbytes imported, before a weight is loaded."""
    compiled_bytes: int = 130 * MIB
    """What a CPU process takes besides while it computes in bfloat16: products that are compiled for each shape."""
    varied_bytes: int = 0
    """What it takes besides that where rows are of different lengths: heap that fits no later tensor, more products."""
    cpu_slack: float = 0.25
    """Share of what comes and goes on a CPU (activations, not weights) that the heap holds beyond it."""
    cuda_context_bytes: int = 500 * MIB
    """What CUDA's context and kernels take of a GPU beside PyTorch's allocator."""
    cuda_slack: float = 0.10
    """Share of what is allocated on a GPU that the caching allocator reserves beyond it."""
    workspace_bytes: int = 32 * MIB
    """cuBLAS workspaces of a GPU."""
    low: float = 0.85
    """Measured peaks lie between this share of the forecast …"""
    high: float = 1.15
    """… and this one, as often as `coverage` says."""
    coverage: float | None = None
    """Share of runs whose measured peak lay in the interval; None: no run was measured for these constants."""
    runs: int = 0
    """Runs that they were fitted to."""
    runs_before: int = 0
    """Runs of the constants that those moved, where they are too few to tell an interval by themselves."""
    source: str = "quantkit's first guess; no run was measured on this machine (quantkit plan --calibrate)"

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with these fields replaced."""
        return replace(self, **changes)


CONSTANTS = Constants()
