"""Which settings that learn the same thing fit into the memory that is there?

First batches become smaller, and more of them make a step, which computes nothing twice; then, in the smallest batches, as much
is computed again as it takes (`quantkit.forecasting.choice`). Losses stay the same either way, so a run may even resume with
them. Last, the adapter is kept, to be folded in tensor by tensor afterwards (`quantkit merge`). Shorter rows, smaller ranks or
another method change what is learnt; those are for `quantkit plan --fit`, where somebody chooses.
"""

import math
from collections.abc import Callable, Iterator

from quantkit.forecasting.choice import least_recompute
from quantkit.forecasting.constants import Constants
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape

FLAGS = {
    "rows": "--per-device-train-batch-size",
    "accumulation": "--gradient-accumulation-steps",
    "recompute": "--recompute",
}
Fits = Callable[[Forecast], bool]
Needs = Callable[[Forecast], int]


def peak_bytes(forecast: Forecast) -> int:
    """Return what a run needs at its peak."""
    return forecast.peak_bytes


def nearest(forecast: Forecast, room_bytes: int, *, needs: Needs = peak_bytes) -> Forecast | None:
    """Return the forecast of the first settings whose needs (the peak) fit; None where none of them does."""
    for step in lighter(forecast.settings):
        found = settle(forecast.shape, step, forecast.constants, lambda other: needs(other) <= room_bytes)
        if found is not None and found.settings != forecast.settings:
            return found
    return None


def in_the_same_batches(forecast: Forecast, room_bytes: int, *, needs: Needs = peak_bytes) -> Forecast | None:
    """Return the forecast that fits with the least computed again and nothing else changed; None where none does."""
    shape, settings, constants = forecast.shape, forecast.settings, forecast.constants
    return least_recompute(shape, settings, constants, lambda other: needs(other) <= room_bytes)


def settle(shape: ModelShape, step: tuple[RunSettings, bool], constants: Constants, fits: Fits) -> Forecast | None:
    """Return the forecast of one step of `lighter` where it fits, with the least computed again where that is open."""
    settings, again = step
    if again:
        return least_recompute(shape, settings, constants, fits)
    found = forecast_run(shape, settings, constants)
    return found if fits(found) else None


def lighter(settings: RunSettings) -> Iterator[tuple[RunSettings, bool]]:
    """Yield settings that need less and less for the same steps, as given first; and whether more may be computed again."""
    rows_of_a_step = settings.rows * settings.accumulation
    smaller = [rows for rows in range(settings.rows, 0, -1) if rows_of_a_step % rows == 0]
    for merges in [True, False] if settings.merges else [False]:
        for rows in smaller:
            yield in_smaller_batches(settings.with_changes(merges=merges), rows), False
        yield in_smaller_batches(settings.with_changes(merges=merges), smaller[-1]), True


def in_smaller_batches(settings: RunSettings, rows: int) -> RunSettings:
    """Return settings with so many rows in a forward pass, and as many rows in a step as before."""

    def part(count: int | None, least: int) -> int | None:
        return None if count is None else min(count, max(math.ceil(count * rows / settings.rows), least))

    return settings.with_changes(
        rows=rows,
        accumulation=settings.rows * settings.accumulation // rows,
        tokens=part(settings.tokens, settings.length),
        supervised=part(settings.supervised, 1),
    )


def as_flags(before: RunSettings, after: RunSettings) -> str:
    """Return what to change as flags of `quantkit train`."""
    changed = [f"{flag} {getattr(after, key)}" for key, flag in FLAGS.items() if getattr(after, key) != getattr(before, key)]
    return " ".join([*changed, *(["--no-merge-after-train"] if before.merges and not after.merges else [])])
