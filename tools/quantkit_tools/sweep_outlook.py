"""What will the trainings of a sweep take? As `quantkit train --dry-run` says it of each, over rows that were read once.

What steps of the same method and merge policy took in this sweep is better known than any forecast, and comes before it; what
other steps took is not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantkit.methods import Methods
from quantkit_tools.foresight import foresee
from quantkit_tools.outlook import refusal, timing_of
from quantkit_tools.plan_time import EarlierRuns
from quantkit_tools.sweep_journal import Journal
from quantkit_tools.sweep_planning import Step, SweepPlan

if TYPE_CHECKING:
    from quantkit.data import PreparedData


@dataclass(frozen=True, slots=True)
class Expected:
    """What a step will take; None where it is not known."""

    time_s: float | None = None
    memory_bytes: int | None = None
    rate: str = ""
    """Where the time is forecast: by which rate."""
    refused: str = ""
    """Why the run would be refused for its memory."""


def forecasts(plan: SweepPlan, rows: "Mapping[str, PreparedData]", methods: Methods) -> dict[str, Expected]:
    """Return name → forecast of the trainings whose rows were read; steps that differ in their seed only share it."""
    earlier = EarlierRuns(plan.root)
    known: dict[str, Expected] = {}
    found: dict[str, Expected] = {}
    for step in plan.steps:
        if step.run is None or step.name not in rows:
            continue
        key = repr(step.config.with_changes(seed=0))
        if key not in known:
            known[key] = _forecast(step, rows[step.name], earlier, methods)
        found[step.name] = known[key]
    return found


def expected(step: Step, journal: Journal, forecast: Mapping[str, Expected]) -> Expected:
    """Return what a step will take: as those like it took, as forecast, or as others of its kind took."""
    told = forecast.get(step.name, Expected())
    like, other = journal.expected(step, alike=True), journal.expected(step)
    time_s = _first((like[0], told.time_s, other[0]))
    memory = _first((like[1], told.memory_bytes, other[1], step.memory_bytes))
    rate = told.rate if like[0] is None else ""
    return Expected(time_s, None if memory is None else int(memory), rate, told.refused)


def _forecast(step: Step, rows: "PreparedData", earlier: EarlierRuns, methods: Methods) -> Expected:
    found = None if step.run is None else foresee(step.run, rows, methods=methods)
    if found is None:
        return Expected()
    time, _, run_s = timing_of(found, earlier)
    rate = "" if time.rate is None or run_s is None else time.rate.source
    return Expected(run_s, found.forecast.peak_bytes, rate, "" if found.fits else refusal(found))


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)
