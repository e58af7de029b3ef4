"""`quantkit plan`: what will a run take, and what fits? Answered from a configuration alone, in a second, without torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit import console
from quantkit.aliases import canonical
from quantkit.errors import UsageError
from quantkit.forecasting.fitting import PREFERENCES, Preference
from quantkit.forecasting.sizes import parse_bytes
from quantkit.methods import installed_methods
from quantkit_tools import plan_show
from quantkit_tools.flags import FileFlags, parse_run_flags
from quantkit_tools.plan_options import SharedOption, options_apart
from quantkit_tools.plan_settings import Asked, asked, cells
from quantkit_tools.plan_time import rate_for

METHOD_FLAGS = ("quant_method", "quant_bits", "load_in_4bit", "load_in_8bit", "config")
"""Flags that choose a method; without one of them, all methods are shown."""


@dataclass(frozen=True)
class PlanFlags(FileFlags):
    """Forecast memory and time of a run of `quantkit train`; its flags are the run's own. Nothing is loaded.

    `quantkit plan MODEL` shows all methods and adapters, with --quant-method NAME one run in detail.
    """

    fit: str | None = None
    """Find the best settings that fit into so much memory: 8GiB, 24GB, …"""
    prefer: Preference = "quality"
    """What --fit gives up last: quality, the base's precision; speed, whole batches without recomputing."""
    table: bool = False
    """Show 7B, 13B and 70B models x full, LoRA, QLoRA, and published figures beside ours."""
    processes: int = 1
    """GPUs (or processes on a CPU) that share the run: each has a copy, or as sharding or device_map say."""
    mean_length: float | None = None
    """Tokens of an average row, for the time; None: max_length."""
    tokens_per_s: float | None = None
    """Tokens per second of one process, for the time; None: as the nearest run on this machine had it."""
    measure: bool = False
    """Time one matrix product here and tell the time from it (imports torch)."""
    calibrate: bool = False
    """Move the shipped forecast by the runs in the registry, be it one, and keep what was found there."""
    dry_run: bool = False
    """With --calibrate: print what was found, and keep nothing."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit plan`."""
    words = _with_model(arguments)
    alone = not any(word.startswith(("--model", "--base-model", "--base_model", "--config")) for word in words)
    if alone and not {"-h", "--help"}.intersection(words):
        words = ["--model-name-or-path", "-", *words]
    shared: list[SharedOption] = []
    if not (_chooses_method(words) or {"-h", "--help", "--table", "--calibrate"}.intersection(words)):
        words, shared = options_apart(words, installed_methods(), PlanFlags)
    config, flags, _ = parse_run_flags(words, PlanFlags, verb="plan")
    if flags.json:
        console.use_stderr()
    if flags.calibrate:
        from quantkit_tools.forecast_learning import calibrate

        learnt = calibrate(dry_run=flags.dry_run)
        if flags.json:
            console.emit_json(learnt)
        return 0
    if flags.table:
        from quantkit_tools.plan_tables import show_classical

        return show_classical(json=flags.json)
    if config.model_name_or_path == "-":
        raise UsageError("plan wants a model: quantkit plan MODEL (folder, config.json or hub id); or --table, or --calibrate")
    question = asked(config, known=_known(flags), shared=shared)
    if flags.fit is not None:
        return _fit(question, flags, words)
    if not _chooses_method(words):
        return _all(question, flags)
    return _one(question, flags)


def _with_model(arguments: list[str]) -> list[str]:
    """Return the arguments with a leading word turned into the model's flag."""
    if arguments and not arguments[0].startswith("-"):
        return ["--model-name-or-path", *arguments]
    return list(arguments)


def _chooses_method(words: list[str]) -> bool:
    names = (canonical(word[2:].partition("=")[0]) for word in words if word.startswith("--"))
    return any(name in METHOD_FLAGS for name in names)


def _known(flags: PlanFlags) -> Mapping[str, Any]:
    for name in ("processes", "mean_length", "tokens_per_s"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be positive")
    return {"processes": flags.processes, "mean_length": flags.mean_length}


def _one(question: Asked, flags: PlanFlags) -> int:
    config, methods = question.config, installed_methods()
    plan = question.plan_of(methods, config.quant_method, question.adapter(), config.method_options)
    forecast = question.forecast(plan, methods)
    time = rate_for(question, forecast.settings, given=flags.tokens_per_s, measure=flags.measure)
    if flags.json:
        console.emit_json(forecast.to_dict() | {"time": time.to_dict(flags.processes), "remarks": list(question.remarks)})
        return 0
    timed = forecast.settings.device == "cpu" and config.compute_dtype == "auto"
    plan_show.show_run(forecast, time, remarks=question.remarks, timed=timed)
    plan_show.tell_notes(plan, question.model_config, dense=question.saves_dense(plan))
    return 0


def _all(question: Asked, flags: PlanFlags) -> int:
    found = cells(question, installed_methods())
    if flags.json:
        console.emit_json(
            {
                "model": question.shape.to_dict(),
                "device": question.device,
                "remarks": list(question.remarks),
                "options": [option.to_dict() for option in question.shared],
                "cells": [
                    {
                        "method": cell.method,
                        "adapter": cell.kind,
                        "reason": cell.reason or None,
                        "note": cell.note or None,
                        "forecast": None if cell.forecast is None else cell.forecast.to_dict(),
                    }
                    for cell in found
                ],
            }
        )
        return 0
    plan_show.show_cells(question, found)
    return 0


def _fit(question: Asked, flags: PlanFlags, words: list[str]) -> int:
    from quantkit_tools.plan_fit import fit_run, show_fit

    room = parse_bytes(str(flags.fit), where="--fit")
    found = fit_run(question, installed_methods(), room, prefer=flags.prefer, chosen=_chooses_method(words))
    if flags.json:
        console.emit_json(found.to_dict() | {"preference": flags.prefer, "order": PREFERENCES[flags.prefer]})
    else:
        show_fit(question, found, prefer=flags.prefer)
    return 0 if found.fits else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
