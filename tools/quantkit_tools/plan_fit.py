"""`quantkit plan --fit 8GiB`: the best settings that fit, what they give up, and what else would fit."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from quantkit.config import SETTINGS
from quantkit.console import Column, format_bytes, say, table, warn
from quantkit.errors import QuantkitError
from quantkit.forecasting.choice import least_recompute
from quantkit.forecasting.fitting import PREFERENCES, Fit, Preference, fits, given_up, least
from quantkit.forecasting.forecast import Forecast
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.sizes import least_text
from quantkit.forecasting.storage import UNPACKED
from quantkit.methods import Methods, installed_methods
from quantkit.plan import QuantizationPlan
from quantkit_tools.plan_options import methods_of_bases
from quantkit_tools.plan_settings import Asked
from quantkit_tools.plan_show import interval_text, settings_text, tell_notes

PLACES = {"rows": "--per-device-train-batch-size", "accumulation": "--gradient-accumulation-steps", "length": "--max-length"}


SPLIT = {"fsdp": "--sharding fsdp2", "device_map": "--device-map auto"}
"""How several GPUs share a run → its flag."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What fits into so much memory, the best first; the forecast of what was asked for."""

    room_bytes: int
    wanted: Forecast
    fits: tuple[Fit, ...]
    least: Fit | None = None
    """The smallest settings that were tried; None where something fits."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "room_bytes": self.room_bytes,
            "asked": self.wanted.to_dict(),
            "fits": [_described(fit) for fit in self.fits],
            "least": None if self.least is None else _described(self.least),
        }


def _described(fit: Fit) -> dict[str, Any]:
    return {"command": command(fit), "given_up": list(fit.given_up), "forecast": fit.forecast.to_dict()}


def fit_run(question: Asked, methods: Methods, room_bytes: int, *, prefer: Preference, chosen: bool) -> FitResult:
    """Return what fits; with `chosen`, only with the method that was named.

    What is proposed fits with the upper end of its interval, as a run at the very edge runs out of memory every other time;
    where nothing does, with its forecast.
    """
    config = question.config
    start = question.plan_of(methods, config.quant_method, question.adapter(), config.method_options)
    settings = question.settings(start, methods)
    ways = [question.settings(plan, methods) for plan in ([start] if chosen else _plans(question, methods, start))]
    room, found = room_bytes, list[Fit]()
    for room in (round(room_bytes / question.constants.high), room_bytes):
        found = list(fits(question.shape, settings, ways, room, question.constants, prefer=prefer))
        if found:
            break
    whole = in_whole_batches(settings, found[0], room) if found else None
    smallest = None if found else least(question.shape, settings, ways, question.constants)
    proposed = (*found[:1], *([whole] if whole else []), *found[1:])
    return FitResult(room_bytes, question.forecast(start, methods), proposed, smallest)


def in_whole_batches(start: RunSettings, best: Fit, room_bytes: int) -> Fit | None:
    """Return the best settings with the batches that were asked for, and as much computed again as that takes; None where
    batches were not given up, or it cannot be."""
    shape, settings, constants = best.forecast.shape, best.forecast.settings, best.forecast.constants
    if settings.rows == start.rows:
        return None
    batches = {key: getattr(start, key) for key in ("rows", "accumulation", "tokens", "supervised")}
    found = least_recompute(shape, settings.with_changes(**batches), constants, lambda other: other.peak_bytes <= room_bytes)
    return None if found is None else Fit(found, given_up(start, found.settings))


def _plans(question: Asked, methods: Methods, start: QuantizationPlan) -> list[QuantizationPlan]:
    """Return ways to hold the base, the most precise first: those of each width that keep it quantized while training.

    Scales that are quantized again cost no quality (arXiv:2305.14314, section 4) and come before those that are not.
    """
    found: dict[tuple[int, bool], QuantizationPlan] = {}
    for name in (start.method, *methods_of_bases(methods)):
        try:
            plan = question.plan_of(methods, name, question.adapter(), question.options_of(name))
        except QuantkitError:
            continue
        spec = plan.spec
        if plan.adapter.kind != start.adapter.kind or (spec.is_quantized and spec.format in UNPACKED):
            continue
        key = (spec.weights_bits, spec.double_quant)
        found.setdefault(key, plan)
    return sorted(found.values(), key=lambda plan: (-plan.spec.weights_bits, not plan.spec.double_quant))


def command(fit: Fit) -> str:
    """Return the command that runs these settings."""
    settings = fit.forecast.settings
    split = settings.strategy in ("ddp", "fsdp")
    parts = [f"torchrun --standalone --nproc-per-node {settings.processes} --no-python"] if split else []
    parts += ["quantkit train", f"--model {fit.forecast.shape.name}", f"--quant-method {settings.plan.method}"]
    parts += [f"--peft-config {settings.adapter.kind}"]
    parts += [f"--lora-r {settings.adapter.r}"] if settings.adapter.kind != "NoPeft" else []
    parts += [f"{flag} {getattr(settings, key)}" for key, flag in PLACES.items()]
    parts += [SPLIT[settings.strategy]] if settings.strategy in SPLIT else []
    parts += [f"--recompute {settings.recompute}"] if settings.recompute != "none" else []
    parts += [f"--optim {settings.optim}"] if settings.optim != (settings.plan.optim or "adamw_torch") else []
    return " ".join([*parts, *_option_flags(settings.plan), *([] if settings.merges else ["--no-merge-after-train"])])


def _option_flags(plan: QuantizationPlan) -> Iterator[str]:
    """Yield the options of a plan that are not its method's defaults, as flags."""
    for item in fields(installed_methods().info(plan.method).options):
        value = plan.options.get(item.name, item.default)
        if item.name not in SETTINGS and value != item.default:
            flag = item.name.replace("_", "-")
            yield f"--no-{flag}" if value is False else f"--{flag}" if value is True else f"--{flag} {value}"


def show_fit(question: Asked, found: FitResult, *, prefer: Preference) -> None:
    """Print what fits."""
    settings, room = found.wanted.settings, format_bytes(found.room_bytes)
    run = f"{settings.plan.method} {settings.adapter.label}, {settings_text(settings)}"
    say(f"asked for: {run}: {format_bytes(found.wanted.peak_bytes)}")
    for option in question.shared:
        say(option.text)
    tell_notes(settings.plan, question.model_config, dense=question.saves_dense(settings.plan))
    if found.least is not None:
        say(f"nothing fits into {room}: not with the shortest rows, the smallest rank and every other saving", style="bold")
        say(f"the least that was tried takes {least_text(found.least.forecast.peak_bytes)}: {command(found.least)}")
        return
    columns = [Column("method"), Column("peak", "right"), Column("gives up")]
    rows = [
        [fit.forecast.settings.plan.method, format_bytes(fit.forecast.peak_bytes), ", ".join(fit.given_up) or "nothing"]
        for fit in found.fits
    ]
    caption = f"the best first: {PREFERENCES[prefer]}"
    table(f"{question.shape.name} in {room}", columns, rows, caption=caption)
    say("")
    say(f"{command(found.fits[0])}", style="bold")
    say(f"expected {interval_text(found.fits[0].forecast)}")
    if found.fits[0].forecast.interval[1] > found.room_bytes:
        warn(f"the upper end of that is above {room}: memory may not suffice")
