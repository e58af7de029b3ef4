"""How much memory did each stage of a run need at its peak, and whose number is that?

Two numbers that are often mixed up are kept apart: what CUDA's allocator held (allocated by tensors, reserved from the
driver, per GPU), and the resident memory of the whole process on the CPU. On Linux the kernel's own high-water mark is
reset at the start of a stage and read at its end, so short peaks are seen; elsewhere, or where that is not permitted, a
thread samples. One peak over the whole run, the usual report, hides which stage to work on.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from quantkit.cgroups import free_in_group
from quantkit.console import Column, format_bytes, format_duration
from quantkit.spec import read_fields

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
SAMPLE_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class StagePeak:
    """The peaks of one stage."""

    stage: str
    duration_s: float
    peak_rss_bytes: int
    """Largest resident memory of the process, its libraries and everything loaded before included."""
    peak_allocated_bytes: dict[str, int] = field(default_factory=dict)
    """Device (`cuda:0`, …) to the largest sum of living CUDA tensors."""
    peak_reserved_bytes: dict[str, int] = field(default_factory=dict)
    """Device to the most that CUDA's allocator held from the driver."""
    rss_sampled: bool = False
    """Whether the resident peak was sampled (shorter peaks are missed) instead of read from the kernel."""
    inside: str | None = None
    """The stage that this one was part of."""
    cpu_s: float | None = None
    """Processor seconds of all threads of the process; beside `duration_s`, they say how busy the machine was."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a stage back from JSON data; raises `UsageError` as `QuantizationSpec.from_dict` does."""
        return read_fields(cls, data, where="memory.stages")


class MemoryLog:
    """The stages of one run, in the order they ended."""

    def __init__(self, stages: list[StagePeak] | None = None, forecast: Mapping[str, Any] | None = None) -> None:
        self.stages: list[StagePeak] = stages or []
        self.forecast = forecast
        """What was forecast before the first stage that loads anything (`quantkit.forecasting.measured`)."""
        self._names: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside; stages may nest, and one that fails is recorded too."""
        inside = self._names[-1] if self._names else None
        self._names.append(name)
        running = _Running()
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            duration_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
            running.stop()
            self._names.pop()
            peaks = (running.rss, running.allocated, running.reserved, running.sampled)
            self.stages.append(StagePeak(name, round(duration_s, 3), *peaks, inside, round(cpu_s, 3)))

    def overall(self) -> StagePeak:
        """Return the largest of each number over all stages; durations are the sums of the outermost ones'."""
        outermost = [peak for peak in self.stages if peak.inside is None]
        cpu_s = [peak.cpu_s for peak in outermost if peak.cpu_s is not None]
        return StagePeak(
            "whole run",
            round(sum(peak.duration_s for peak in outermost), 3),
            max((peak.peak_rss_bytes for peak in self.stages), default=0),
            _largest(peak.peak_allocated_bytes for peak in self.stages),
            _largest(peak.peak_reserved_bytes for peak in self.stages),
            any(peak.rss_sampled for peak in self.stages),
            cpu_s=round(sum(cpu_s), 3) if cpu_s else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        stages = {"stages": [peak.to_dict() for peak in self.stages]}
        return stages if self.forecast is None else stages | {"forecast": dict(self.forecast)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a log back from JSON data; raises `UsageError` as `QuantizationSpec.from_dict` does."""
        return cls([StagePeak.from_dict(stage) for stage in data.get("stages", ())], data.get("forecast"))


def memory_rows(log: MemoryLog) -> tuple[list[Column], list[list[object]]]:
    """Return columns and rows for `console.table`: one row per stage, one pair of columns per GPU."""
    gpus = sorted({gpu for peak in log.stages for gpu in peak.peak_allocated_bytes})
    columns = [Column("stage"), Column("time", "right")]
    for gpu in gpus:
        columns += [Column(f"{gpu} allocated", "right"), Column(f"{gpu} reserved", "right")]
    columns.append(Column("process resident" + (" (sampled)" if log.overall().rss_sampled else ""), "right"))
    rows: list[list[object]] = []
    for peak in log.stages:
        row: list[object] = [f"{peak.inside}: {peak.stage}" if peak.inside else peak.stage, format_duration(peak.duration_s)]
        for gpu in gpus:
            for bytes_of in (peak.peak_allocated_bytes, peak.peak_reserved_bytes):
                row.append(format_bytes(bytes_of[gpu]) if gpu in bytes_of else None)
        rows.append([*row, format_bytes(peak.peak_rss_bytes)])
    return columns, rows


def free_bytes(device: str) -> int:
    """Return the bytes that could be allocated on a device now: free GPU memory, or memory available to the process.

    On a CPU that is the least of what the machine and the process's control groups leave (containers, Slurm).
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free, limited = int(psutil.virtual_memory().available), free_in_group()
    return free if limited is None else min(free, limited)


def own_bytes(device: str) -> int:
    """Return the bytes of a device that this process holds by itself: its CUDA tensors and cache, or its resident memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_reserved(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


class _Running:
    """Peaks of a stage that has not ended; all of them share the kernel's and CUDA's one mark each."""

    open: list["_Running"] = []  # noqa: RUF012 - shared on purpose
    lock = threading.RLock()

    def __init__(self) -> None:
        self.rss = 0
        self.allocated: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        with self.lock:
            self._collect()
            self.sampled = not _reset_peaks()
            self.open.append(self)
        self._sampler = _Sampler() if self.sampled else None

    def stop(self) -> None:
        """Take the last reading; the marks are left to the stages around this one."""
        with self.lock:
            if self._sampler is not None:
                self.rss = max(self.rss, self._sampler.stop())
            self._collect()
            self.open.remove(self)

    def _collect(self) -> None:
        rss = _kernel_peak_bytes()
        allocated, reserved = _cuda_peaks()
        for running in self.open:
            if not running.sampled:
                running.rss = max(running.rss, rss)
            running.allocated = _largest((running.allocated, allocated))
            running.reserved = _largest((running.reserved, reserved))


class _Sampler:
    """A thread that looks at the resident memory every 20 ms, for systems without a mark that can be reset."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._before = _lifetime_peak_bytes()
        self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quantkit-memory", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def stop(self) -> int:
        """Return the peak in bytes: the process's lifetime peak if this stage raised it, else the largest sample."""
        self._done.set()
        self._thread.join()
        self._peak = max(self._peak, self._process.memory_info().rss)
        lifetime = _lifetime_peak_bytes()
        return max(lifetime, self._peak) if lifetime > self._before else self._peak


def _reset_peaks() -> bool:
    """Reset the marks of kernel and CUDA; return whether the kernel's could be."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    try:
        CLEAR_REFS.write_text("5")  # proc_pid_clear_refs(5): resets VmHWM to the current resident size
    except OSError:
        return False
    return _kernel_peak_bytes() > 0


def _kernel_peak_bytes() -> int:
    """Return VmHWM of this process; 0 where the kernel does not tell."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _cuda_peaks() -> tuple[dict[str, int], dict[str, int]]:
    """Return device → peak bytes allocated and reserved; empty when this process has not used CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}, {}
    devices = range(torch.cuda.device_count())
    return (
        {f"cuda:{index}": torch.cuda.max_memory_allocated(index) for index in devices},
        {f"cuda:{index}": torch.cuda.max_memory_reserved(index) for index in devices},
    )


def _lifetime_peak_bytes() -> int:
    """Return the process's resident peak since its start; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _largest(many: Any) -> dict[str, int]:
    largest: dict[str, int] = {}
    for some in many:
        for device, peak in some.items():
            largest[device] = max(peak, largest.get(device, 0))
    return largest
