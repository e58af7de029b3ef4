"""What do the artifacts of a registry teach the forecasts of its next runs? `quantkit plan --calibrate` asks this.

Every training run keeps its forecast beside its measurement in its record. Here they are read back, the shipped constants of
each kind of device are moved by them, from the first run on, and kept under the root, where `quantkit train` and
`quantkit plan` find them. A model that learns while it is used, the alternative, forecasts the same run differently from one
day to the next.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.console import format_bytes, say, table, warn
from quantkit.errors import QuantkitError, UsageError
from quantkit.forecasting.constants import CONSTANTS, Constants
from quantkit.forecasting.learning import DEVICES, FILE, fit, shipped, write_calibration
from quantkit.forecasting.measured import Measured, of_device, read_measured
from quantkit.memory import MemoryLog
from quantkit_registry.store import Registry


def calibrate(root: Path | str | None = None, *, dry_run: bool = False) -> dict[str, Any]:
    """Move the shipped constants by the runs of each kind of device, print and keep them; return what was found as JSON data.

    Raises:
        UsageError: no run has a forecast and a measurement.
    """
    registry = Registry(root)
    found = measured_runs(registry)
    learnt = {}
    for device in DEVICES:
        if of_device(found, device):
            learnt[device] = fit(found, device, start=shipped().get(device, CONSTANTS))
    if not learnt:
        raise UsageError(
            f"{registry.root}: no artifact has a forecast beside its measurement. Every `quantkit train` that ends adds one"
        )
    _show(learnt)
    file = registry.root / FILE
    if dry_run:
        say(f"dry run: {file} is left as it is")
    else:
        for device, constants in learnt.items():
            write_calibration(file, device, constants)
        say(f"kept in {file}")
    return {
        "runs": len(found),
        "file": None if dry_run else str(file),
        "devices": {device: asdict(constants) for device, constants in learnt.items()},
    }


def tell_if_above(memory: MemoryLog) -> None:
    """Say where a run on a CPU took more than the whole interval of its forecast, and what makes the next one truer."""
    peak = memory.overall()
    if memory.forecast is None or peak.peak_allocated_bytes or peak.peak_rss_bytes <= memory.forecast["interval"]["high_bytes"]:
        return
    low, high = (format_bytes(memory.forecast["interval"][end]) for end in ("low_bytes", "high_bytes"))
    say(
        f"the peak was above what was expected ({low} to {high});"
        " quantkit plan --calibrate lets the next forecasts learn from it"
    )


def measured_runs(registry: Registry) -> list[Measured]:
    """Return forecast and measurement of every run of a registry that has both, oldest first; says which cannot be read."""
    found = []
    for artifact in sorted(registry.artifacts(), key=lambda item: item.record.created_at if item.record else ""):
        try:
            memory = artifact.record.memory if artifact.record else {}
            if (run := read_measured(memory, name=artifact.name)) is not None:
                found.append(run)
        except QuantkitError as error:
            warn(f"left out: {error}")
    return found


def _show(learnt: dict[str, Constants]) -> None:
    rows = []
    for device, constants in learnt.items():
        taken = constants.process_bytes if device == "cpu" else constants.cuda_context_bytes
        slack = constants.cpu_slack if device == "cpu" else constants.cuda_slack
        between = f"{constants.low:.0%} to {constants.high:.0%}, for {constants.coverage:.0%} of runs"
        before = f" (and {constants.runs_before} before)" if constants.runs_before else ""
        rows.append([device, f"{constants.runs}{before}", format_bytes(taken), f"{slack:+.1%}", between])
    table("Forecasts", ["device", "runs", "taken anyway", "beyond what is counted", "measured / forecast"], rows)
