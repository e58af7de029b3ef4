"""Which settings that learn the same thing fit into the memory that is there?

First batches become smaller, and more of them make a step, which computes nothing twice; then MLPs, then whole blocks are
computed again. Losses stay the same either way, so a run may even resume with them. Last, the adapter is kept, to be folded
in tensor by tensor afterwards (`quantkit merge`). Shorter rows, smaller ranks or another method change what is learnt; those
are for `quantkit plan --fit`, where somebody chooses.
"""

import math
from collections.abc import Callable, Iterator

from quantkit.forecasting.forecast import STEP, Forecast, forecast_run
from quantkit.forecasting.settings import RunSettings

RECOMPUTE = ("none", "selective", "full")
FLAGS = {
    "rows": "--per-device-train-batch-size",
    "accumulation": "--gradient-accumulation-steps",
    "recompute": "--recompute",
}


def nearest(
    forecast: Forecast, room_bytes: int, *, needs: Callable[[Forecast], int] = lambda found: found.peak_bytes
) -> Forecast | None:
    """Return the forecast of the first settings whose needs (the peak) fit; None where none of them does."""
    for settings in lighter(forecast.settings):
        found = forecast_run(forecast.shape, settings, forecast.constants)
        if needs(found) <= room_bytes:
            return found
    return None


def step_bytes(forecast: Forecast) -> int:
    """Return the largest total of a training step, without what comes before and after all steps."""
    return max(forecast.total(moment) for moment in forecast.moments if moment.name in STEP[1:])


def lighter(settings: RunSettings) -> Iterator[RunSettings]:
    """Yield settings that need less and less for the same steps."""
    rows_of_a_step = settings.rows * settings.accumulation
    smaller = [rows for rows in range(settings.rows - 1, 0, -1) if rows_of_a_step % rows == 0]
    for merges in [True, False] if settings.merges else [False]:
        for recompute in RECOMPUTE[RECOMPUTE.index(settings.recompute) :]:
            again = settings.with_changes(recompute=recompute, merges=merges)
            if again != settings:
                yield again
            yield from (in_smaller_batches(again, rows) for rows in smaller)


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
