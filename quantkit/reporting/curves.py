"""How did training go? The loss of every step as it was recorded, thinned to what a plot can show.

Records keep each step's loss, so nothing is read from checkpoints, which are deleted when a run is done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.reporting.facts import Subject

MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """The losses of one run, in nats per supervised token; `x` counts optimizer steps."""

    subject: Subject
    x: tuple[float, ...]
    y: tuple[float, ...]
    steps_per_point: int
    before: float | None
    """Loss on held-out rows before the first step, and after the last one; None where it was not measured."""
    after: float | None


def curves(subjects: Sequence[Subject]) -> list[Curve]:
    """Return one curve per run; artifacts that carry the same run's losses share the first one's curve."""
    found: dict[tuple[float, ...], Curve] = {}
    for subject in subjects:
        training = subject.record.get("training")
        losses = tuple(_losses(training)) if isinstance(training, Mapping) else ()
        if losses and losses not in found and isinstance(training, Mapping):
            x, y, width = thinned(losses)
            before, after = (_number(training.get(f"evaluation_loss_{when}")) for when in ("before", "after"))
            found[losses] = Curve(subject, x, y, width, before, after)
    return list(found.values())


def thinned(losses: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return steps and losses of at most 400 points, each the mean of as many steps, and how many those are.

    >>> thinned([4.0, 2.0])
    ((1.0, 2.0), (4.0, 2.0), 1)
    """
    width = -(-len(losses) // MOST_POINTS)
    parts = [losses[at : at + width] for at in range(0, len(losses), width)]
    steps = [index * width + (len(part) + 1) / 2 for index, part in enumerate(parts)]
    return tuple(steps), tuple(sum(part) / len(part) for part in parts), width


def _losses(training: Mapping[str, Any]) -> Iterator[float]:
    losses = training.get("losses")
    for loss in losses if isinstance(losses, list) else ():
        number = _number(loss)
        if number is not None:
            yield number


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
