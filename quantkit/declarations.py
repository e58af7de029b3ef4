"""Is what a plugin declares about its method whole enough for every command that lists methods?

Flags, help texts and `quantkit methods --json` are made from the declarations of all methods, so one that cannot be described
would take them all down. Checking when it is used, the alternative, fails in the command of somebody who never asked for it.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from quantkit.gate import GateLimits
from quantkit.plan import PEFT_KINDS, CalibrationNeed, MethodInfo, MethodNotes, Stage
from quantkit.spec import METHOD_NAME


def fault_in(info: Any) -> str:
    """Say what is wrong with the answer of `declare_method`; empty where nothing is."""
    if not isinstance(info, MethodInfo):
        return f"declare_method returned {type(info).__name__}, not a MethodInfo"
    return _fault_in_words(info) or _fault_in_requirements(info) or _fault_in_options(info)


def _fault_in_words(info: MethodInfo) -> str:
    for name in ("requirements", "devices", "adapters", "claims"):
        words = getattr(info, name)
        if not isinstance(words, tuple) or not all(isinstance(word, str) for word in words):
            return f"MethodInfo.{name} of {info.name} is {words!r}, not a tuple of texts"
    odd = [stage for stage in info.stages if not isinstance(stage, Stage)]
    limits = info.gate_limits.values() if isinstance(info.gate_limits, Mapping) else [None]
    rules = (
        (
            isinstance(info.name, str) and METHOD_NAME.fullmatch(info.name),
            f"MethodInfo.name is {info.name!r}; letters and digits, at most 32, make a method's name",
        ),
        (isinstance(info.summary, str), f"MethodInfo.summary of {info.name} is {info.summary!r}, not a text"),
        (
            isinstance(info.notes, MethodNotes) and all(isinstance(text, str) for text in asdict(info.notes).values()),
            f"MethodInfo.notes of {info.name} is {info.notes!r}, not MethodNotes of texts",
        ),
        (bool(info.stages), f"MethodInfo.stages of {info.name} is empty"),
        (not odd, f"MethodInfo.stages of {info.name} holds {odd[:1]}, which is no quantkit.Stage"),
        (bool(info.devices), f"MethodInfo.devices of {info.name} is empty"),
        (
            set(info.adapters) <= {*PEFT_KINDS},
            f"MethodInfo.adapters of {info.name} is {info.adapters!r}; known: {', '.join(PEFT_KINDS)}",
        ),
        (
            info.calibration in get_args(CalibrationNeed),
            f"MethodInfo.calibration of {info.name} is {info.calibration!r}; it must be one of {get_args(CalibrationNeed)}",
        ),
        (
            all(isinstance(item, GateLimits) for item in limits),
            f"MethodInfo.gate_limits of {info.name} is {info.gate_limits!r}, not bits to GateLimits",
        ),
    )
    return next((fault for holds, fault in rules if not holds), "")


def _fault_in_requirements(info: MethodInfo) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    for text in info.requirements:
        try:
            Requirement(text)
        except InvalidRequirement:
            return f"MethodInfo.requirements of {info.name} holds {text!r}, which is no requirement (name>=1.0)"
    return ""


def _fault_in_options(info: MethodInfo) -> str:
    if not is_dataclass(info.options) or not isinstance(info.options, type):
        return f"MethodInfo.options of {info.name} is {info.options!r}, not a dataclass"
    where = f"the options class {info.options.__name__} of {info.name}"
    try:
        get_type_hints(info.options)
    except Exception as error:
        return f"{where} has an annotation that cannot be read: {type(error).__name__}: {error}"
    for option in fields(info.options):
        try:
            default = option.default if option.default_factory is MISSING else option.default_factory()
            json.dumps(None if default is MISSING else [*default] if isinstance(default, set | frozenset) else default)
        except Exception as error:
            return f"{where}: the default of {option.name} is no plain value: {type(error).__name__}: {error}"
    return ""
