"""Which quantization methods are there, what do they take, and do they work on this machine? (`quantkit methods`)

Answered from declarations, package metadata and device files. Importing torch to ask it for a GPU would take seconds, and
would fail just where someone needs to know what is missing.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from quantkit import console
from quantkit.console import Column
from quantkit.errors import UsageError
from quantkit.methods import Methods, installed_methods, require_usable
from quantkit.plan import MethodInfo, Stage
from quantkit_tools.field_help import field_docstrings
from quantkit_tools.small_flags import read_small_flags

NVIDIA_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Where Linux shows an NVIDIA driver; the last one under WSL."""


@dataclass(frozen=True)
class Flags:
    """List quantization methods, where they come from and whether they work here."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = ""
    """Show this method's options."""
    json: bool = False
    """Print one JSON object, options included; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit methods [NAME] [--json]`."""
    flags = read_small_flags(Flags, "methods", arguments)
    methods, devices = installed_methods(), device_types()
    names = (methods.info(flags.name).name,) if flags.name else methods.names
    entries = [describe_method(methods, name, devices) for name in names]
    if flags.json:
        console.use_stderr()
        console.emit_json({"devices": list(devices), "methods": entries, "broken": methods.broken, "notes": methods.notes})
    elif flags.name:
        show_one(entries[0])
    else:
        show_all(entries, methods.broken, methods.notes)
    return 0


def describe_method(methods: Methods, name: str, devices: tuple[str, ...]) -> dict[str, Any]:
    """Return what is known about one method as plain JSON data; `usable` says whether it works on one of these devices."""
    info, source = methods.info(name), methods.source(name)
    device = next((device for device in devices if device in info.devices), devices[0])
    try:
        require_usable(methods, [name], device)
        why_not = None
    except UsageError as error:
        why_not = str(error)
    return {
        "name": info.name,
        "summary": info.summary,
        "stages": [stage.value for stage in Stage if stage in info.stages],
        "adapters": list(info.adapters) if Stage.BASE in info.stages else [],
        "calibration": info.calibration,
        "devices": list(info.devices),
        "requirements": list(info.requirements),
        "missing": list(methods.missing(name)),
        "usable": why_not is None,
        "why_not": why_not,
        "claims": list(info.claims),
        **asdict(info.notes),
        "plugin": source.plugin,
        "distribution": source.distribution,
        "options": describe_options(info),
    }


def describe_options(info: MethodInfo) -> list[dict[str, Any]]:
    """Return name, type, default (as JSON, None where there is none) and help text of each option of a method."""
    helps = field_docstrings(info.options)
    return [
        {
            "name": option.name,
            "type": _type_name(option.type),
            "default": _plain(option.default if option.default_factory is MISSING else option.default_factory()),
            "required": option.default is MISSING and option.default_factory is MISSING,
            "help": helps.get(option.name, ""),
        }
        for option in fields(info.options)
    ]


def _type_name(kind: Any) -> str:
    """Return a type as one would write it; a choice as its values."""
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def device_types() -> tuple[str, ...]:
    """Return the device types torch can use here, best first, without importing it: `cuda` or `mps` if seen, and `cpu`."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if not hidden and any(path.exists() for path in NVIDIA_FILES) and not _torch_version().endswith("+cpu"):
        return ("cuda", "cpu")
    return ("mps", "cpu") if sys.platform == "darwin" else ("cpu",)


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none+cpu"


def _plain(value: Any) -> Any:
    if value is MISSING:
        return None
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def show_all(entries: list[dict[str, Any]], broken: Mapping[str, str], notes: Mapping[str, str]) -> None:
    """Print a table of methods, what keeps some from working, and plugins that are broken or misbehave."""
    columns = [
        Column("method"),
        Column("stages"),
        Column("usable"),
        Column("calibration", priority=3),
        Column("adapters", priority=2),
        Column("from", priority=1),
        Column("summary"),
    ]
    rows = [
        [
            entry["name"],
            ", ".join(entry["stages"]),
            entry["usable"],
            entry["calibration"],
            ", ".join(entry["adapters"]) or None,
            entry["distribution"],
            entry["summary"],
        ]
        for entry in entries
    ]
    console.table("Quantization methods", columns, rows, caption="`quantkit methods NAME` shows a method's options")
    unusable = [[entry["name"], entry["why_not"]] for entry in entries if not entry["usable"]]
    if unusable:
        console.table("Not usable here", ["method", "reason"], unusable)
    if broken:
        console.table("Broken plugins", ["plugin", "reason"], sorted(broken.items()))
    if notes:
        console.table("Plugins that misbehave", ["plugin", "what it does"], sorted(notes.items()))


def show_one(entry: dict[str, Any]) -> None:
    """Print one method: facts, then its options with their defaults and help texts."""
    listed = [key for key in entry if key not in ("name", "summary", "options", "missing", "usable", "why_not", "plugin")]
    facts = [[key, (", ".join(entry[key]) if isinstance(entry[key], list) else entry[key]) or None] for key in listed]
    facts.append(["usable here", "yes" if entry["usable"] else f"no: {entry['why_not']}"])
    console.table(f"{entry['name']}: {entry['summary']}", ["fact", "value"], facts)
    options = [[o["name"], "required" if o["required"] else o["default"], o["type"], o["help"]] for o in entry["options"]]
    console.table(f"Options of {entry['name']}", ["option", "default", Column("type", priority=1), "help"], options)
