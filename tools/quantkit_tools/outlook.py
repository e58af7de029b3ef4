"""What would a run take? `quantkit train --dry-run` says it as the run itself would, before its rows are read.

Rows are taken to be as long as settings let them be, so the run's own forecast, over its rows, is lower or the same; a dry run
refuses nothing. Reading the rows for it, the alternative, takes as long as the data is large, and wants it to be there.
"""

from typing import Any

from quantkit.console import format_duration, say, warn
from quantkit.layout import counted
from quantkit.methods import Methods
from quantkit_tools.foresight import Foresight, advice, doubt, expected_text, foresee, recomputed_text, there_text
from quantkit_tools.plan_time import earlier_rate
from quantkit_tools.planning import RunPlan


def show_outlook(run: RunPlan, methods: Methods) -> dict[str, Any] | None:
    """Print memory and time that a run is expected to take, and whether it fits; return them as JSON data.

    None where nothing is trained, or the model's shape cannot be told.
    """
    found = foresee(run, None, methods=methods) if run.trains else None
    if found is None:
        return None
    forecast = found.forecast
    say(
        f"memory expected at the peak ({forecast.largest.name}) if all rows have {forecast.settings.length} tokens:"
        f" {expected_text(found)}; {there_text(found)}{recomputed_text(found)}"
    )
    if not found.fits:
        warn(f"with such rows memory will not suffice, and the run would be refused: {advice(found, found.room_bytes)}")
    elif text := doubt(found):
        warn(text)
    return found.to_dict(forced=False) | {"fits": found.fits, "step_s": _step_s(found)}


def _step_s(found: Foresight) -> float | None:
    """Print and return the seconds of a step at the rate of the newest run on this kind of device; None where there is none."""
    from quantkit.forecasting.timing import timing

    forecast = found.forecast
    settings = forecast.settings
    time = timing(forecast.shape, settings, earlier_rate(settings.device))
    step_s, run_s = time.seconds_of(settings.processes if settings.strategy in ("ddp", "fsdp") else 1)
    if time.rate is None or step_s is None:
        return None
    steps = counted(settings.steps or 0, "step")
    whole = f", {format_duration(run_s)} for {steps}" if run_s is not None and settings.steps else ""
    say(f"time expected: at most {format_duration(step_s)} a step{whole}, if all rows are so long ({time.rate.source})")
    return step_s
