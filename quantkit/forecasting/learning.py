"""What do the runs of a machine teach its next forecast?

Bytes are counted; libraries, allocators and fragmentation are not, and differ between machines. On a CPU they are a line over
the counted bytes (what the process takes anyway, and a share beyond what of it comes and goes), and what compiled products and
rows of different lengths take besides while it computes; on a GPU, the share that the allocator reserves beyond. The shipped
constants are what is believed before the first run, with the spread in `SPREADS`; each run moves them by what it is worth
beside that belief, so one run neither replaces them nor is ignored. Runs far off count by a bounded amount. Fitting to a
machine's own runs alone, the alternative, made forecasts worse until some ten of them were there. The interval is the range in
which the runs' forecasts, each made without that run, were off; while runs are few, what the shipped interval says stands in
for the missing ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist

from quantkit.errors import UsageError
from quantkit.files import read_json, write_json
from quantkit.forecasting.constants import CONSTANTS, Constants
from quantkit.forecasting.measured import Measured, of_device
from quantkit.layout import counted
from quantkit.spec import read_fields

FILE = "forecast_calibration.json"
"""Under the root of a registry: kind of device → constants."""
SHIPPED = "calibration.json"
"""Beside this module, in the same form: what a machine without runs of its own starts with."""
SCHEMA_VERSION = 1
DEVICES = ("cpu", "cuda")
WIDEST = 0.9
"""Coverage that is aimed at."""
ENOUGH = 20
"""Runs from which an interval of that coverage is told by them alone; fewer are filled up from the interval before them."""
SPREADS = {"process_bytes": 100e6, "cpu_slack": 0.1, "compiled_bytes": 100e6, "varied_bytes": 100e6, "cuda_slack": 0.1}
"""How far a machine's constants are expected from the shipped ones, as a standard deviation: about as far as fits to runs on
different models lay apart (`benchmarks/forecast.py`, its `constants`)."""
FAR = 1.345
"""Standard deviations beyond which a run's pull does not grow (Huber, 1964: 95 % efficient where errors are normal)."""
NORMAL = 1.645
"""Standard deviations of the middle 90 %."""
NEWEST = 200
"""Runs that are fitted to, at most."""


def fit(found: Sequence[Measured], device: str, *, start: Constants = CONSTANTS, source: str = "") -> Constants:
    """Return `start` with the constants of this kind of device moved by its runs, newest last.

    Raises:
        UsageError: no run has a forecast and a measurement.
    """
    runs = of_device(found, device)[-NEWEST:]
    if not runs:
        raise UsageError(f"no run on {device} has a forecast beside its measurement; every `quantkit train` that ends adds one")
    fitted = _most_likely(runs, start)
    ratios = [_held(run) / expected(run, _most_likely([*runs[:at], *runs[at + 1 :]], start)) for at, run in enumerate(runs)]
    low, high, coverage = interval([*ratios, *_believed(start, len(runs))])
    before = max(ENOUGH - len(runs), 0) and start.runs
    here = f"{counted(len(runs), 'run')} on this machine, {datetime.now(UTC).date().isoformat()}"
    return fitted.with_changes(
        low=low,
        high=high,
        coverage=coverage,
        runs=len(runs),
        runs_before=before,
        source=source or (f"{here}, beside those of before ({start.source})" if before else f"fitted to {here}"),
    )


def expected(run: Measured, constants: Constants) -> float:
    """Return the bytes that constants forecast for a run: resident ones on a CPU, reserved ones on a GPU."""
    return max(_bytes(moment, constants) for moment in _moments(run))


def _moments(run: Measured) -> tuple[tuple[int, dict[str, int]], ...]:
    """Return the bytes counted of a run's moments that can be its peak, each with what constants are multiplied by in it."""
    if run.device != "cpu":
        counted = max(run.counted_bytes, run.beside_bytes)
        return ((counted, {"cuda_slack": counted}),)
    beside = {"process_bytes": 1, "cpu_slack": run.beside_passing_bytes, "compiled_bytes": 0, "varied_bytes": 0}
    computing = beside | {"cpu_slack": run.passing_bytes, "compiled_bytes": int(run.compiles), "varied_bytes": int(run.varied)}
    return (run.counted_bytes, computing), (run.beside_bytes, beside)


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


def _held(run: Measured) -> int:
    """Return what a run is judged by: resident memory on a CPU, what the allocator held on a GPU."""
    return run.reserved_bytes or run.measured_bytes


def _most_likely(runs: Sequence[Measured], start: Constants) -> Constants:
    """Return the constants most likely after these runs, by relative errors: normal ones, exponential where they are far.

    Least squares with weights, repeated until they settle; `start` and `SPREADS` are the normal belief before.
    """
    import numpy as np

    if not runs:
        return start
    names = list(_moments(runs[0])[0][1])
    held = np.array([_held(run) for run in runs], float)
    spreads = np.array([SPREADS[name] for name in names])
    noise = max((start.high - start.low) / 2 / NORMAL, 0.01)
    moved, found = np.zeros(len(names)), start
    for _ in range(100):
        peaks = [max(_moments(run), key=lambda moment: _bytes(moment, found)) for run in runs]
        slopes = np.array([[sizes[name] for name in names] for _, sizes in peaks], float) / held[:, None] * spreads
        missing = 1 - np.array([_bytes(moment, start) for moment in peaks]) / held
        errors = np.abs(missing - slopes @ moved)
        weights = np.minimum(FAR * noise / np.maximum(errors, 1e-12), 1) / noise**2
        belief = (slopes.T * weights) @ slopes + np.eye(len(names))
        before, moved = moved, np.linalg.solve(belief, slopes.T @ (weights * missing))
        found = _moved(start, dict(zip(names, moved * spreads, strict=True)))
        if np.abs(moved - before).max() < 1e-6:
            break
    return found


def _bytes(moment: tuple[int, Mapping[str, int]], constants: Constants) -> float:
    counted, sizes = moment
    return float(counted + sum(getattr(constants, name) * size for name, size in sizes.items()))


def _moved(start: Constants, steps: Mapping[str, float]) -> Constants:
    found = {name: getattr(start, name) + float(step) for name, step in steps.items()}
    taken = {name: round(max(value, 0)) for name, value in found.items() if name.endswith("_bytes")}
    shares = {name: round(max(value, -0.9), 4) for name, value in found.items() if name not in taken}
    return start.with_changes(**taken, **shares)


def _believed(constants: Constants, runs: int) -> list[float]:
    """Return the ratios that stand in for missing runs, spread as the interval of constants says, 90 % of them inside.

    Wider by what so few runs leave open: on simulated machines (`tests/forecasting/test_learning.py`) intervals without that
    held 10 points less often than they said after one run, 5 after three.
    """
    number, wider = max(ENOUGH - runs, 0), 1 + 1 / (runs + 1)
    halves = {False: wider * (1 - constants.low), True: wider * (constants.high - 1)}
    places = [NormalDist().inv_cdf((at + 0.5) / number) for at in range(number)]
    return [1 + place / NORMAL * halves[place > 0] for place in places]
