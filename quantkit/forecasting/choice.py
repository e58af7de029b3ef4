"""Of which decoder blocks should activations be computed again, so that a run fits and loses the least time?

Blocks are alike, so the choice is two numbers: of how many blocks everything, of how many the MLP alone is computed again. For
each number of whole blocks the fewest MLPs that make the forecast fit are found by bisection, and of these pairs the one with
the least arithmetic is taken. Taking the saving with the most bytes per second first, a greedy solution of this knapsack, is as
good to within a block, as blocks are alike and the saving of a kind is the same for each; but which kind that is depends on the
model and on the length of rows, and peaks are no sum of savings: the moment of the peak changes on the way. Looking at all
numbers of whole blocks takes some hundred forecasts, a tenth of a second.
"""

from bisect import bisect_left
from collections.abc import Callable

from quantkit.forecasting.activations import has_mlps
from quantkit.forecasting.constants import Constants
from quantkit.forecasting.forecast import Forecast, forecast_run
from quantkit.forecasting.moments import STEP
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.timing import flops_per_token
from quantkit.recompute import Recompute


def step_bytes(forecast: Forecast) -> int:
    """Return the largest total of a training step, without what comes before and after all steps."""
    return max(forecast.total(moment) for moment in forecast.moments if moment.name in STEP[1:])


def least_recompute(
    shape: ModelShape, settings: RunSettings, constants: Constants, fits: Callable[[Forecast], bool]
) -> Forecast | None:
    """Return the forecast that `fits` with the least computed again, whatever `settings` say of it; None where none does."""

    def tried(full: int, selective: int) -> Forecast:
        text = Recompute(full, selective).text(shape.blocks)
        return forecast_run(shape, settings.with_changes(recompute=text), constants)

    def fewest(full: int) -> int | None:
        if fits(tried(full, 0)):  # where all blocks but one are whole, an MLP more may need more
            return 0
        most = shape.blocks - full if has_mlps(shape) else 0
        count = bisect_left(range(most + 1), True, key=lambda selective: fits(tried(full, selective)))
        return None if count > most else count

    if settings.offload:  # what is kept waits on the CPU; inputs of blocks computed again would not
        return none if fits(none := tried(0, 0)) else None
    if not any(fits(tried(full, 0)) for full in _smallest(shape)):
        return None
    found: Forecast | None = None
    for full in range(shape.blocks + 1):
        selective = fewest(full)
        if selective is not None and (found is None or _cost(tried(full, selective)) < _cost(found)):
            found = tried(full, selective)
        if selective == 0:
            break
    return found


def chosen(forecast: Forecast, room_bytes: int, *, recorded: str | None = None) -> Forecast:
    """Return the forecast with what `auto` computes again: nothing where a step fits as it is.

    Where it does not, the least with which the upper end of its interval fits: a choice at the very edge would run out of
    memory every other time. Where none is so small, the least whose forecast fits; where none does, the smallest. What a
    checkpoint has `recorded` is kept where it fits.
    """
    shape, settings, constants = forecast.shape, forecast.settings, forecast.constants

    def within(share: float) -> Callable[[Forecast], bool]:
        return lambda found: step_bytes(found) * share <= room_bytes

    if recorded is not None:
        before = forecast_run(shape, settings.with_changes(recompute=recorded), constants)
        if within(1)(before):
            return before
    if within(1)(forecast):
        return forecast
    for share in (constants.high, 1.0):
        if (found := least_recompute(shape, settings, constants, within(share))) is not None:
            return found
    smallest = [settings.with_changes(recompute=Recompute(full).text(shape.blocks)) for full in _smallest(shape)]
    return min((forecast, *(forecast_run(shape, item, constants) for item in smallest)), key=step_bytes)


def _smallest(shape: ModelShape) -> tuple[int, int]:
    """Return of how many blocks everything is computed again where that keeps least: of all but the last, whose turn comes
    before anything is given back, or of all."""
    return shape.blocks - 1, shape.blocks


def _cost(forecast: Forecast) -> float:
    return flops_per_token(forecast.shape, forecast.settings)
