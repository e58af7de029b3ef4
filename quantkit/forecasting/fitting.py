"""Which settings fit into so much memory, and what has to be given up for them?

Settings are tried in a stated order, and the first that fit are the answer: what learns the same thing goes first (smaller
batches, recomputing, folding in afterwards), then the precision of the base, then the adapter's rank, then the length of rows.
A score over all of them, the alternative, hides the choice in its weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quantkit.forecasting.constants import Constants
from quantkit.forecasting.forecast import Forecast
from quantkit.forecasting.nearest import lighter, settle
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.layout import counted

Preference = Literal["quality", "speed"]
PREFERENCES = {
    "quality": "batches, recomputing and folding in are given up before the base's precision, that before rank, that before"
    " length",
    "speed": "the base's precision is given up before batches and recomputing, these before rank, that before length",
}
"""Preference → the order in which things are given up."""
LEAST_RANK, LEAST_LENGTH = 4, 128
SMALL_OPTIMIZER = "adamw_bnb_8bit"


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that fit, and what they give up."""

    forecast: Forecast
    given_up: tuple[str, ...]


def fits(
    shape: ModelShape,
    start: RunSettings,
    ways: Sequence[RunSettings],
    room_bytes: int,
    constants: Constants,
    *,
    prefer: Preference = "quality",
) -> Iterator[Fit]:
    """Yield for each way the first settings that fit, the way of the best one first; nothing where none fits.

    `start` has the settings that were asked for; `ways` are these with each way to hold the base, the most precise first.
    """
    for shrunk in zip(*map(_shrunk, ways), strict=True):
        found: list[tuple[tuple[int, int], Fit]] = []
        for number, settings in enumerate(shrunk):
            for place, step in enumerate(_lighter(settings)):
                first = settle(shape, step, constants, lambda other: other.peak_bytes <= room_bytes)
                if first is not None:
                    key = (number, place) if prefer == "quality" else (place, number)
                    found.append((key, Fit(first, given_up(start, first.settings))))
                    break
        if found:
            yield from (fit for _, fit in sorted(found, key=lambda pair: pair[0]))
            return


def least(shape: ModelShape, start: RunSettings, ways: Sequence[RunSettings], constants: Constants) -> Fit:
    """Return the smallest of all settings that `fits` tries, for where none fits."""
    tried: list[Forecast] = []

    def never(forecast: Forecast) -> bool:
        tried.append(forecast)
        return False

    for way in ways:
        *_, smallest = _shrunk(way)
        for step in _lighter(smallest):
            settle(shape, step, constants, never)
    found = min(tried, key=lambda forecast: forecast.peak_bytes)
    return Fit(found, given_up(start, found.settings))


def _shrunk(start: RunSettings) -> Iterator[RunSettings]:
    """Yield the settings with ever smaller ranks, then with ever shorter rows."""
    length = start.length
    while length >= min(LEAST_LENGTH, start.length):
        rank = start.adapter.r
        while rank >= min(LEAST_RANK, start.adapter.r):
            alpha = start.adapter.lora_alpha * rank / start.adapter.r
            adapter = replace(start.adapter, r=rank, lora_alpha=alpha)
            mean = None if start.mean_length is None else min(start.mean_length, length)
            yield start.with_changes(plan=start.plan.with_changes(adapter=adapter), length=length, mean_length=mean)
            if start.adapter.kind == "NoPeft":
                break
            rank //= 2
        length //= 2


def _lighter(settings: RunSettings) -> list[tuple[RunSettings, bool]]:
    """Return settings that learn the same with less and less memory, those as asked first; 8-bit states come last."""
    same = list(lighter(settings))
    if settings.optim.endswith("8bit"):
        return same
    name = f"paged_{SMALL_OPTIMIZER.replace('_bnb', '')}" if settings.device != "cpu" else SMALL_OPTIMIZER
    return [*same, *((item.with_changes(optim=name), again) for item, again in same)]


def given_up(before: RunSettings, after: RunSettings) -> tuple[str, ...]:
    """Return what settings that fit give up of those that were asked for, in words."""
    words = []
    if before.plan.spec.with_changes(tags=()) != after.plan.spec.with_changes(tags=()):
        words.append(f"the base in {after.plan.spec.weights_dtype} ({after.plan.method})")
    if before.rows != after.rows:
        words.append(f"batches of {after.rows}, {after.accumulation} of them a step")
    if before.recompute != after.recompute:
        words.append(f"recompute {after.recompute}")
    if before.merges and not after.merges:
        words.append("folded in afterwards (quantkit merge)")
    if after.optim.endswith("8bit") and not before.optim.endswith("8bit"):
        words.append(f"optimizer {after.optim}")
    if before.adapter.r != after.adapter.r:
        words.append(f"rank {after.adapter.r}")
    if before.length != after.length:
        words.append(f"rows of {counted(after.length, 'token')}")
    return tuple(words)
