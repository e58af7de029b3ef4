"""At which rate will a run go? As its flags say, as a product here is measured, or as the nearest run on this machine went.

The nearest is, among those that trained on this kind of device, one by the same method, then of the same kind of adapter, then
of the same model, then the newest. The newest alone was tried: of a run that trained all weights, it told a QLORA run too fast.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.timing import Rate, Timing, measured_rate, rate_of_tokens, timing
from quantkit_registry.store import Artifact, Registry, default_root
from quantkit_tools.plan_settings import Asked


def rate_for(question: Asked, settings: RunSettings, *, given: float | None, measure: bool) -> Timing:
    """Return the time of a run, its rate None where none is known."""
    if given is not None:
        rate: Rate | None = rate_of_tokens(given, question.shape, settings)
    elif measure:
        rate = measured_rate(settings.device, settings.arithmetic)
    else:
        rate = EarlierRuns().rate(question.shape, settings)
    return timing(question.shape, settings, rate)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that kept a forecast: how fast it went, and what it was."""

    name: str
    tokens_per_s: float
    flops_per_token: float
    device: str
    method: str
    adapter: str
    model: tuple[Any, Any]
    """Family and parameters."""


class EarlierRuns:
    """The runs of the registry, and of `folder`, that kept a forecast, read once, when they are first asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folders = list(dict.fromkeys([default_root(), *([folder] if folder else [])]))

    def rate(self, shape: ModelShape, settings: RunSettings) -> Rate | None:
        """Return the rate of the run nearest to this one, and in what that was another; None where none is known."""
        wanted = {"method": settings.plan.method, "adapter": settings.adapter.kind, "model": (shape.family, shape.parameters)}

        def others(run: _Run) -> list[str]:
            return [what for what, value in wanted.items() if getattr(run, what) != value]

        here = [run for run in self._runs if run.device == settings.device]
        if not here:
            return None
        run = min(here, key=lambda run: [what in others(run) for what in wanted])
        said = {"method": run.method, "adapter": run.adapter, "model": "another model"}
        differing = ", ".join(said[what] for what in others(run))
        source = f"the rate of {run.name}{f' ({differing})' if differing else ''}: {run.tokens_per_s:,.0f} tokens/s"
        return Rate(run.tokens_per_s * run.flops_per_token, source)

    @cached_property
    def _runs(self) -> Sequence[_Run]:
        """The newest first."""
        known: list[Artifact] = []
        for folder in self._folders:
            with suppress(QuantkitError):
                known += Registry(folder).artifacts()
        dated = [(item.record.created_at, run) for item in known if item.record is not None and (run := _run_of(item))]
        return [run for _, run in sorted(dated, key=lambda pair: pair[0], reverse=True)]


def _run_of(artifact: Artifact) -> _Run | None:
    """Return what an artifact's record says of its run; None where it kept no forecast or does not say how fast it was."""
    if artifact.record is None:
        return None
    forecast, tokens = artifact.record.memory.get("forecast"), artifact.record.training.get("tokens_per_s")
    if not isinstance(forecast, Mapping) or not isinstance(tokens, int | float):
        return None
    flops, model, settings = forecast.get("flops_per_token"), _part(forecast, "model"), _part(forecast, "settings")
    if not isinstance(flops, int | float):
        return None
    plan = _part(settings, "plan")
    return _Run(
        name=artifact.name,
        tokens_per_s=tokens,
        flops_per_token=flops,
        device=str(settings.get("device")),
        method=str(plan.get("method")),
        adapter=str(_part(plan, "adapter").get("kind")),
        model=(model.get("family"), model.get("parameters")),
    )


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = data.get(key)
    return part if isinstance(part, Mapping) else {}
