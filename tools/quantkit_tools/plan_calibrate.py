"""`quantkit plan --calibrate`: fit the forecast's constants to what the runs in the registry measured."""

from dataclasses import asdict

from quantkit import console
from quantkit.forecasting.constants import CONSTANTS
from quantkit.forecasting.learning import FILE, fit, shipped, write_calibration
from quantkit.forecasting.measured import Measured, read_measured
from quantkit_registry.store import Registry, default_root
from quantkit_tools.methods import device_types


def calibrate(device: str, *, json: bool) -> int:
    """Fit the constants of a kind of device (`auto`: this machine's best), keep them in the registry, and print them.

    Raises:
        UsageError: too few runs have a forecast beside their measurement.
    """
    kind = device_types()[0] if device == "auto" else device.partition(":")[0]
    constants = fit(measured_runs(), kind, start=shipped().get(kind, CONSTANTS))
    path = default_root() / FILE
    write_calibration(path, kind, constants)
    if json:
        console.emit_json({"device": kind, "file": str(path), "constants": asdict(constants)})
        return 0
    rows: list[list[object]] = [["libraries", console.format_bytes(constants.process_bytes)]] if kind == "cpu" else []
    rows.append(["held beyond what is counted", f"{constants.cpu_slack if kind == 'cpu' else constants.cuda_slack:.1%}"])
    coverage = "not known" if constants.coverage is None else f"{constants.coverage:.0%} of new runs"
    rows += [
        ["measured peaks", f"{constants.low:.3f} to {constants.high:.3f} of the forecast"],
        ["which holds for", coverage],
        ["runs", constants.runs],
        ["kept in", str(path)],
    ]
    console.table(f"Forecasts on {kind}", ["", ""], rows)
    return 0


def measured_runs() -> list[Measured]:
    """Return forecast and measurement of each run in the registry, oldest first."""
    records = [item.record for item in Registry().artifacts() if item.record is not None]
    records.sort(key=lambda record: record.created_at)
    return [run for record in records if (run := read_measured(record.memory, name=record.name)) is not None]
