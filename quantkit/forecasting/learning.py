"""What do the runs of a machine teach its next forecast?

Bytes are counted; libraries, allocators and fragmentation are not, and differ between machines. On a CPU they are a line over
the counted bytes (what the process takes anyway, and a share beyond what is counted), fitted by least absolute relative error,
which a few strange runs do not move, and what rows of different lengths take besides. On a GPU they are the share that the
allocator reserves beyond. The interval is the
range in which the other runs' forecasts, each made without that run, were off, and says how often it may be expected to hold.
A model of many features would fit better and be wrong about the first run that is unlike the others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from quantkit.errors import UsageError
from quantkit.files import read_json, write_json
from quantkit.forecasting.constants import CONSTANTS, Constants
from quantkit.forecasting.measured import Measured, of_device
from quantkit.spec import read_fields

FILE = "forecast_calibration.json"
"""Under the root of a registry: kind of device → constants."""
SHIPPED = "calibration.json"
"""Beside this module, in the same form: what a machine without runs of its own starts with."""
SCHEMA_VERSION = 1
DEVICES = ("cpu", "cuda")
FEWEST = 5
"""Runs below which nothing is fitted."""
FEWEST_ALIKE = 3
"""Runs with rows of one length, and with rows of different ones, from which what the latter take besides is told."""
WIDEST = 0.9
"""Coverage that is aimed at; of few runs, all are inside, which covers less."""
SPREAD = 1.5
"""Ratio of the largest to the smallest counted bytes below which a share cannot be told from a constant."""
NEWEST = 200
"""Runs that are fitted to, at most."""


@dataclass(frozen=True, slots=True)
class Line:
    """Resident bytes over counted ones."""

    base: float
    factor: float
    varied: float
    """Bytes besides where rows are of different lengths."""

    def at(self, run: Measured) -> float:
        """Return the resident bytes of a run."""
        return self.base + self.factor * run.counted_bytes + self.varied * run.varied


def fit(found: Sequence[Measured], device: str, *, start: Constants = CONSTANTS, source: str = "") -> Constants:
    """Return `start` with the constants of this kind of device fitted to its runs, newest last.

    Raises:
        UsageError: there are fewer than five runs with a forecast and a measurement.
    """
    runs = of_device(found, device)[-NEWEST:]
    if len(runs) < FEWEST:
        raise UsageError(
            f"{len(runs)} runs on {device} have a forecast beside their measurement; fitting takes {FEWEST}. Every"
            " `quantkit train` that ends adds one"
        )
    if device == "cpu":
        found_line = _resident(runs, start)
        fitted: dict[str, Any] = {
            "process_bytes": round(found_line.base),
            "cpu_slack": round(found_line.factor - 1, 4),
            "varied_bytes": round(found_line.varied),
        }
    else:
        fitted = {"cuda_slack": round(_reserved(runs) - 1, 4)}
    low, high, coverage = interval(_left_out(runs, start, resident=device == "cpu"))
    today = datetime.now(UTC).date().isoformat()
    return start.with_changes(
        **fitted,
        low=low,
        high=high,
        coverage=coverage,
        runs=len(runs),
        source=source or f"fitted to {len(runs)} runs on this machine, {today}",
    )


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return low and high for ratios of measurement to forecast, and the share of new runs to be expected between them.

    Of n exchangeable ratios, a new one lies between the k-th smallest and the k-th largest with probability
    (n + 1 - 2k) / (n + 1).

    >>> interval([0.9, 1.0, 1.1, 1.02])
    (0.9, 1.1, 0.6)
    """
    ordered, number = sorted(ratios), len(ratios)
    at = max(int((number + 1) * (1 - WIDEST) / 2), 1)
    low, high = ordered[at - 1], ordered[-at]
    return round(min(low, 1.0), 4), round(max(high, 1.0), 4), round((number + 1 - 2 * at) / (number + 1), 3)


def constants_for(device: str, *roots: Path) -> Constants:
    """Return the constants of a kind of device (`cuda:0` is `cuda`): the first root's own, else the shipped ones.

    Raises:
        UsageError: a calibration file is not what quantkit writes; the text names file and key.
    """
    kind = device.partition(":")[0]
    for root in roots:
        if (root / FILE).is_file() and kind in (kept := read_calibration(root / FILE)):
            return kept[kind]
    return shipped().get(kind, CONSTANTS)


def shipped() -> dict[str, Constants]:
    """Return the constants that quantkit comes with, by kind of device; their `source` says what they were fitted to."""
    return read_calibration(Path(str(files("quantkit.forecasting") / SHIPPED)))


def read_calibration(path: Path) -> dict[str, Constants]:
    """Return kind of device → constants of a calibration file; raises `UsageError` when it is none."""
    data = read_json(path, max_bytes=1 << 20)
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{path}: no calibration of forecasts; schema_version must be {SCHEMA_VERSION}")
    return {
        kind: _checked(read_fields(Constants, data[kind], where=f"{path}: {kind}"), path) for kind in DEVICES if kind in data
    }


def write_calibration(path: Path, device: str, constants: Constants) -> None:
    """Keep the constants of one kind of device in a calibration file, beside those of the others."""
    kept = read_calibration(path) if path.is_file() else {}
    kept[device] = constants
    write_json(path, {"schema_version": SCHEMA_VERSION} | {kind: asdict(kept[kind]) for kind in DEVICES if kind in kept})


def _checked(constants: Constants, path: Path) -> Constants:
    if constants.process_bytes < 0 or min(constants.cpu_slack, constants.cuda_slack) <= -1:
        raise UsageError(f"{path}: process_bytes must not be negative, and a slack not below -1")
    if not 0 < constants.low <= 1 <= constants.high < float("inf"):
        raise UsageError(f"{path}: low is {constants.low} and high {constants.high}; 1 must lie between them")
    return constants


def _resident(runs: Sequence[Measured], start: Constants) -> "Line":
    """Return the line of CPU runs: of those whose rows are of one length, and what the others take besides.

    Where too few of either kind are there to tell them apart, the difference stays that of `start`.
    """
    before = Line(float(start.process_bytes), 1 + start.cpu_slack, float(start.varied_bytes))
    even, varied = ([run for run in runs if run.varied is kind] for kind in (False, True))
    if min(len(even), len(varied)) < FEWEST_ALIKE:
        shifted = [run.measured_bytes - before.varied * run.varied for run in runs]
        return Line(*_line([float(run.counted_bytes) for run in runs], shifted, before), before.varied)
    base, factor = _line([float(run.counted_bytes) for run in even], [float(run.measured_bytes) for run in even], before)
    return Line(base, factor, max(median(run.measured_bytes - base - factor * run.counted_bytes for run in varied), 0.0))


def _reserved(runs: Sequence[Measured]) -> float:
    """Return the factor by which a GPU's allocator holds more than is counted."""
    return median((run.reserved_bytes or run.measured_bytes) / run.counted_bytes for run in runs)


def _line(counted: Sequence[float], measured: Sequence[float], start: "Line") -> tuple[float, float]:
    """Return the line with the least sum of absolute relative errors; it goes through two of the points.

    Where the counted bytes hardly differ the factor stays that of `start`, and only the constant is fitted.
    """
    import numpy as np

    sizes, peaks = np.asarray(counted), np.asarray(measured)
    lines = [(base, start.factor) for base in peaks - start.factor * sizes]
    if sizes.max() / sizes.min() >= SPREAD:
        left, right = np.triu_indices(len(sizes), 1)
        apart = sizes[left] != sizes[right]
        left, right = left[apart], right[apart]
        factors = (peaks[left] - peaks[right]) / (sizes[left] - sizes[right])
        lines += list(zip(peaks[left] - factors * sizes[left], factors, strict=True))
    bases, factors = (np.maximum([line[part] for line in lines], 0.0) for part in (0, 1))
    errors = np.abs(bases[:, None] + factors[:, None] * sizes - peaks) / peaks
    best = int(errors.sum(1).argmin())
    return float(bases[best]), float(factors[best])


def _left_out(runs: Sequence[Measured], start: Constants, *, resident: bool) -> list[float]:
    """Return of each run the ratio of its measurement to what the other runs' constants forecast."""
    ratios = []
    for number, run in enumerate(runs):
        others = [*runs[:number], *runs[number + 1 :]]
        if resident:
            ratios.append(run.measured_bytes / _resident(others, start).at(run))
        else:
            held = run.reserved_bytes or run.measured_bytes
            ratios.append(held / (_reserved(others) * run.counted_bytes))
    return ratios
