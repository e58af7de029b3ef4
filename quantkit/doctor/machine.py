"""What does this machine offer, and how much of it is this process allowed to use?

Read from `/proc` and `/sys`: processor flags, cores, memory, and the limits that a container sets on both. Asking the libraries
instead gives what the host has: in a container with 4 GiB, `psutil` reports the host's 256.
"""

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.cgroups import group_folders
from quantkit.doctor.findings import Finding
from quantkit.layout import format_bytes
from quantkit.memory import free_bytes

CAPABILITIES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "bf16": "BF16",
    "sve": "SVE",
}
"""Processor flags (x86 and Arm, as Linux writes them) that decide which kernels run, and their usual names."""
NO_LIMIT = 1 << 60
"""Bytes above which a cgroup's memory limit means none."""
ROOT = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as this process may use it."""

    system: str
    cpu: str
    capabilities: tuple[str, ...]
    """Names of `CAPABILITIES` that the processor has."""
    flags: frozenset[str]
    """All flags, as Linux writes them; empty where the system does not tell."""
    cores: int
    """Cores that the machine has."""
    usable_cores: float
    """Cores that affinity and the container's quota leave to this process."""
    memory_bytes: int
    available_bytes: int
    """What machine and container leave to this process."""
    memory_limit_bytes: int | None
    """Limit of the container; None where there is none."""
    gpus: tuple[str, ...]
    """Names that the NVIDIA driver tells; empty where there is no driver."""
    gpu_driver: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {key: value for key, value in asdict(self).items() if key != "flags"} | {
            "capabilities": list(self.capabilities),
            "gpus": list(self.gpus),
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return (what, value) pairs for people."""
        share = f", {self.usable_cores:g} usable" if self.usable_cores != self.cores else ""
        limit = f", limited to {format_bytes(self.memory_limit_bytes)}" if self.memory_limit_bytes else ""
        gpu = ", ".join(self.gpus) or ("driver without devices" if self.gpu_driver else "none")
        return [
            ("system", self.system),
            ("processor", f"{self.cpu}, {self.cores} cores{share}; {', '.join(self.capabilities) or 'no known extensions'}"),
            ("memory", f"{format_bytes(self.memory_bytes)}, {format_bytes(self.available_bytes)} available{limit}"),
            ("GPU", f"{gpu} (driver {self.gpu_driver})" if self.gpu_driver else gpu),
        ]


def read_machine(root: Path = ROOT) -> Machine:
    """Return what this machine offers; `root` is the folder under which `proc` and `sys` stand."""
    import psutil

    info = _text(root / "proc/cpuinfo")
    named = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", info, flags=re.MULTILINE)
    flags = frozenset(named[1].split()) if named else frozenset()
    model = re.search(r"^model name\s*:\s*(.*)$", info, flags=re.MULTILINE)
    limit = _memory_limit(root)
    driver = re.search(r"\s(\d+(?:\.\d+)+)\s", _text(root / "proc/driver/nvidia/version"))
    return Machine(
        system=platform.platform(),
        cpu=model[1].strip() if model else platform.processor() or platform.machine(),
        capabilities=tuple(name for flag, name in CAPABILITIES.items() if flag in flags),
        flags=flags,
        cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(root),
        memory_bytes=int(psutil.virtual_memory().total),
        available_bytes=min(free_bytes("cpu"), limit or NO_LIMIT),
        memory_limit_bytes=limit,
        gpus=tuple(_gpu_names(root)),
        gpu_driver=driver[1] if driver else None,
    )


def judge_machine(machine: Machine, *, torch_version: str | None, threads: str | None) -> list[Finding]:
    """Return what is wrong with a machine for these libraries; `threads` is `OMP_NUM_THREADS` as it is set."""
    found = []
    if machine.gpu_driver and torch_version is not None and torch_version.endswith("+cpu"):
        found.append(
            Finding(
                severity="beware",
                subject="GPU",
                what=f"the NVIDIA driver {machine.gpu_driver} is there, and torch {torch_version} was built without CUDA",
                advice="install torch from the index of your CUDA version; until then everything runs on the CPU",
            )
        )
    if threads is None and machine.usable_cores < machine.cores:
        found.append(
            Finding(
                severity="beware",
                subject="threads",
                what=f"{machine.usable_cores:g} of {machine.cores} cores may be used; torch counts what it sees and"
                " may start more threads than can run",
                advice=f"set OMP_NUM_THREADS={max(1, int(machine.usable_cores))}",
            )
        )
    if machine.flags and platform.machine() in ("x86_64", "AMD64") and "avx2" not in machine.flags:
        found.append(
            Finding(
                severity="beware",
                subject="processor",
                what="the processor has no AVX2; kernels of torch and bitsandbytes fall back to slow code",
                advice="expect a small part of the usual speed",
            )
        )
    return found


def _gpu_names(root: Path) -> list[str]:
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.*)$", _text(path), flags=re.MULTILINE)
        found.append(model[1].strip() if model else path.parent.name)
    return found


def _usable_cores(root: Path) -> float:
    """Return the cores of this process's affinity, or of its container's quota where that is less."""
    allowed = float(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)
    for _, folder in group_folders("cpu", root):
        words = _text(folder / "cpu.max").split() or [
            _text(folder / "cpu.cfs_quota_us").strip(),
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            allowed = min(allowed, int(words[0]) / int(words[1]))
    return allowed


def _memory_limit(root: Path) -> int | None:
    limits = [
        int(text)
        for _, folder in group_folders("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _text(folder / name).strip()).isdigit()
    ]
    smallest = min(limits, default=NO_LIMIT)
    return smallest if smallest < NO_LIMIT else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
