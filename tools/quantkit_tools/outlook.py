"""What would a run take? `quantkit train --dry-run` says it as the run itself would, over its rows where they are at hand.

Rows of a file or folder are read and checked as the run will read them: 4,000 short ones in a second. Those of the hub are not
fetched for it, and taken to be as long as settings let them be, so that the run's own forecast is lower or the same. A dry run
refuses nothing; what would stop the run is said.
"""

from typing import TYPE_CHECKING, Any

from quantkit.console import format_duration, say, warn
from quantkit.data.sources import parse_dataset
from quantkit.errors import QuantkitError
from quantkit.forecasting.timing import Timing, timing
from quantkit.layout import counted
from quantkit.methods import Methods
from quantkit_tools.foresight import Foresight, advice, doubt, foresee, recomputed_text, there_text
from quantkit_tools.plan_show import peak_text
from quantkit_tools.plan_time import EarlierRuns
from quantkit_tools.planning import RunPlan

if TYPE_CHECKING:
    from quantkit.data import PreparedData


def show_outlook(run: RunPlan, methods: Methods) -> dict[str, Any] | None:
    """Print memory and time that a run is expected to take, and whether it fits; return them as JSON data.

    None where nothing is trained, or the model's shape cannot be told.
    """
    data = _rows_at_hand(run) if run.trains else None
    found = foresee(run, data, methods=methods) if run.trains else None
    if found is None:
        return None
    forecast = found.forecast
    longest = counted(forecast.settings.length, "token")
    rows = f"if all rows have {longest}" if data is None else f"over {counted(len(data.train), 'row')}"
    say(
        f"memory expected at the peak ({forecast.largest.name}) {rows}:"
        f" {peak_text(forecast)}; {there_text(found)}{recomputed_text(found)}"
    )
    if not found.fits:
        warn(f"{'with such rows ' * (data is None)}{refusal(found)}")
    elif text := doubt(found):
        warn(text)
    told = {"fits": found.fits, "rows": None if data is None else len(data.train)}
    return found.to_dict(forced=False) | told | {"step_s": _step_s(found, EarlierRuns(run.target.parent), longest=data is None)}


def refusal(found: Foresight) -> str:
    """Return that a run would be refused for its memory, and what fits."""
    return f"memory will not suffice, and the run would be refused: {advice(found, found.room_bytes)}"


def timing_of(found: Foresight, earlier: EarlierRuns) -> tuple[Timing, float | None, float | None]:
    """Return the time of a run at the rate of the nearest earlier one, in seconds a step and of all its steps."""
    settings = found.forecast.settings
    time = timing(found.forecast.shape, settings, earlier.rate(found.forecast.shape, settings))
    return time, *time.seconds_of(settings.processes if settings.strategy in ("ddp", "fsdp") else 1)


def _rows_at_hand(run: RunPlan) -> "PreparedData | None":
    """Return a run's rows where they lie in files here; None where they do not, or, with a warning, where they are refused."""
    from quantkit_tools import stages

    config = run.config
    named = [name for name in (config.dataset_name, config.eval_dataset_name) if name is not None]
    try:
        if any(parse_dataset(name).path is None for name in named):
            return None
        return stages.prepare_rows(run, stages.load_tokenizer(run))
    except QuantkitError as error:
        warn(f"the run would be refused: {error}")
        return None


def _step_s(found: Foresight, earlier: EarlierRuns, *, longest: bool) -> float | None:
    """Print and return the seconds of a step at the rate of the nearest run on this kind of device; None where there is none.

    `longest`: all rows are taken to be as long as settings let them be.
    """
    settings = found.forecast.settings
    time, step_s, run_s = timing_of(found, earlier)
    if time.rate is None or step_s is None:
        return None
    steps = counted(settings.steps or 0, "step")
    whole = f", {format_duration(run_s)} for {steps}" if run_s is not None and settings.steps else ""
    most, rows = ("at most ", ", if all rows are so long") if longest else ("", "")
    say(f"time expected: {most}{format_duration(step_s)} a step{whole}{rows} ({time.rate.source})")
    return step_s
