"""What did runs forecast, and what did they measure? Read back from the records of their artifacts.

An artifact's `memory` holds both: `forecast`, written before the first weight was read, and `stages`. They are the only store:
what is learnt can be learnt again from the artifacts at any time, and a deleted artifact is forgotten. A log of runs beside
them would be a second truth, to be kept in step with the first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.errors import UsageError
from quantkit.forecasting.forecast import Forecast
from quantkit.forecasting.moments import COMPUTING, TRAINING, Moment
from quantkit.memory import MemoryLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Forecast and measurement of the training stage of one run, in bytes."""

    device: str
    """`cpu` or `cuda`."""
    counted_bytes: int
    """What was counted of its largest forward or backward pass, without libraries and allocators."""
    measured_bytes: int
    """Peak: of the resident memory on a CPU, of what was allocated on the fullest GPU."""
    passing_bytes: int = 0
    """What of it comes and goes."""
    beside_bytes: int = 0
    """What was counted of the largest moment that computes nothing: casting, the optimizer's step."""
    beside_passing_bytes: int = 0
    """What of that comes and goes."""
    compiles: bool = False
    """Whether it computed in bfloat16 on a CPU, whose products are compiled."""
    varied: bool = False
    """Whether its rows were of different lengths."""
    reserved_bytes: int | None = None
    """On a GPU: the most that the allocator held."""
    name: str = ""
    """The artifact's name."""


def forecast_record(forecast: Forecast, *, room_bytes: int, held_bytes: int, forced: bool) -> dict[str, Any]:
    """Return what an artifact's record keeps of a forecast, under `memory.forecast`."""
    return forecast.to_dict() | {"room_bytes": room_bytes, "held_bytes": held_bytes, "forced": forced}


def read_measured(memory: Mapping[str, Any], *, name: str = "") -> Measured | None:
    """Return a run's forecast and measurement from its record's `memory`; None where it has no forecast or did not train.

    Raises:
        UsageError: the forecast is not one of ours.
    """
    forecast = memory.get("forecast")
    trained = [stage for stage in MemoryLog.from_dict(memory).stages if stage.stage == "train"]
    if forecast is None or not trained:
        return None
    try:
        device = str(forecast["settings"]["device"])
        varied = forecast["settings"]["mean_length"] != forecast["settings"]["length"]
        moments = [Moment(item["name"], dict(item["items"])) for item in forecast["moments"] if item["name"] in TRAINING]
        counted = _largest(item for item in moments if item.name in COMPUTING)
        beside = _largest(item for item in moments if item.name not in COMPUTING)
        compiles = device == "cpu" and forecast["settings"].get("arithmetic") == "bfloat16"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{name or 'the record'}: memory.forecast is no forecast: {error!r}") from None
    peak = trained[-1]
    if device == "cpu":
        if peak.rss_sampled:  # short peaks are missed
            return None
        return Measured(
            device=device,
            counted_bytes=counted.size_bytes,
            measured_bytes=peak.peak_rss_bytes,
            passing_bytes=counted.passing_bytes,
            beside_bytes=beside.size_bytes,
            beside_passing_bytes=beside.passing_bytes,
            compiles=compiles,
            varied=varied,
            name=name,
        )
    if not peak.peak_allocated_bytes:
        return None
    return Measured(
        device=device,
        counted_bytes=counted.size_bytes,
        measured_bytes=max(peak.peak_allocated_bytes.values()),
        beside_bytes=beside.size_bytes,
        varied=varied,
        reserved_bytes=max(peak.peak_reserved_bytes.values(), default=None),
        name=name,
    )


def _largest(moments: Iterable[Moment]) -> Moment:
    return max(moments, key=lambda moment: moment.size_bytes, default=Moment("", {}))


def of_device(found: Iterable[Measured], device: str) -> list[Measured]:
    """Return the runs on one kind of device."""
    return [item for item in found if item.device == device]
