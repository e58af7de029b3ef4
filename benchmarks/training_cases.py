"""Which runs stand beside each other? TRL's three, quantkit's, and a ladder with one more lever on every rung.

A lever is a field of `RunConfig` and the value that switches it on; its other value switches it off. A field that this version
does not have makes no rung. Rows of similar length in one batch are a matter of order, not of a field: tools are handed them.
"""

from dataclasses import dataclass, field, fields
from typing import Any

ALL_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
"""What libraries keep by default: PEFT's DoRA takes turns with more products than `quantkit.kernel_caches` keeps."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)}
"""glibc keeps what was freed instead of handing it back: less time in the kernel, more memory."""
LEVERS: tuple[tuple[str, str, Any, Any], ...] = (
    ("supervised positions", "loss_positions", "all", "supervised"),
    ("rows grouped by length", "", None, None),
    ("padding-free", "padding_free", False, True),
    ("prefixes shared", "prefix_sharing", False, True),
    ("adapters fused", "fused_adapters", False, True),
)
"""Rung, field of `RunConfig`, its value without and with the lever; without a field it is the order of rows."""
RECOMPUTE: tuple[tuple[str, str, Any], ...] = (
    ("MLPs recomputed", "recompute", "selective"),
    ("blocks recomputed", "recompute", "full"),
)
TRL, TRL_PATCHED = "TRL, defaults", "TRL, tuned, response-only head"
TRL_TUNED = {dtype: f"TRL, tuned, {dtype}" for dtype in ("float32", "bfloat16")}
"""Which one is TRL at its best depends on the processor: both run, the faster one counts."""
OURS, OURS_GROUPED, OURS_SINGLE = "quantkit, defaults", "quantkit, grouped by length", "quantkit, grouped, float32"
ADAPTERS = ("DoRa", "VeRa")
WHOLE = ("whole run 1", "whole run 2", "whole run 3")
TRL_LONG, OURS_LONG = "TRL, tuned, recomputing", "quantkit, recomputing"


@dataclass(frozen=True)
class Case:
    """One training run of one tool."""

    name: str
    tool: str
    """`trl` or `quantkit`."""
    rows: str = "random"
    """`random`, `grouped` or `long` batches, or those of a whole run."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What is set beside the tool's defaults."""
    environment: dict[str, str] = field(default_factory=dict)
    peft: str = "LoRa"
    """Kind of adapters."""


def main_cases(dtype: str, *, peers: bool) -> list[Case]:
    """Return the runs that goals compare; `dtype` is the one whose matrix products are faster here."""
    theirs = [
        Case(TRL, "trl"),
        *(Case(name, "trl", "grouped", {"tuned": dtype}, ALLOCATOR) for dtype, name in TRL_TUNED.items()),
        Case(TRL_PATCHED, "trl", "grouped", {"tuned": dtype, "response_only": True}, ALLOCATOR),
    ]
    ours = [
        Case(OURS, "quantkit"),
        Case(OURS_GROUPED, "quantkit", "grouped"),
        Case(OURS_SINGLE, "quantkit", "grouped", {"compute_dtype": "float32"}),
    ]
    return [*(theirs if peers else []), *ours]


def memory_cases(dtype: str, *, peers: bool) -> list[Case]:
    """Return the runs on rows of full length whose peaks are compared."""
    changes = full_recompute()
    theirs = [Case(TRL_LONG, "trl", "long", {"tuned": dtype, "recompute": True})] if peers else []
    return [*theirs, Case(OURS_LONG, "quantkit", "long", changes), Case("quantkit, keeping all", "quantkit", "long")]


def adapter_cases() -> list[Case]:
    """Return DoRA and VeRA with PEFT's own modules and with ours, in the same trainer."""
    return [
        Case(
            adapter_case(kind, fused),
            "quantkit",
            changes={"fused_adapters": fused},
            environment={} if fused else ALL_KEPT,
            peft=kind,
        )
        for kind in ADAPTERS
        for fused in (False, True)
    ]


def adapter_case(kind: str, fused: bool) -> str:
    """Return the name of such a case."""
    return f"{kind}, {'ours' if fused else 'PEFT modules'}"


def whole_cases(dtype: str) -> list[Case]:
    """Return whole runs of both tools, one for each order of rows."""
    return [
        case
        for rows in WHOLE
        for case in (
            Case(f"TRL, {rows}", "trl", rows, {"tuned": dtype, "response_only": True}, ALLOCATOR),
            Case(f"quantkit, {rows}", "quantkit", rows),
        )
    ]


def ladder(known: frozenset[str] | None = None) -> list[Case]:
    """Return the rungs, each with every lever of those before it; recomputing and the allocator stand on the last of them.

    >>> [case.name for case in ladder(frozenset({"padding_free"}))]
    ['no lever', '+ rows grouped by length', '+ padding-free', 'all levers, allocator tuned']
    """
    known = config_fields() if known is None else known
    levers = [lever for lever in LEVERS if not lever[1] or lever[1] in known]
    changes = {name: without for _, name, without, _ in levers if name}
    found, rows = [Case("no lever", "quantkit", "random", dict(changes))], "random"
    for rung, name, _, value in levers:
        if name:
            changes[name] = value
        else:
            rows = "grouped"
        found.append(Case(f"+ {rung}", "quantkit", rows, dict(changes)))
    found += [
        Case(f"all levers, {rung}", "quantkit", rows, changes | {name: value})
        for rung, name, value in RECOMPUTE
        if name in known
    ]
    return [*found, Case("all levers, allocator tuned", "quantkit", rows, dict(changes), ALLOCATOR)]


def full_recompute() -> dict[str, Any]:
    """Return the settings that compute every block twice, under the name this version has for it."""
    return {"recompute": "full"} if "recompute" in config_fields() else {"gradient_checkpointing": True}


def config_fields() -> frozenset[str]:
    """Return the settings of this version."""
    from quantkit.config import RunConfig

    return frozenset(item.name for item in fields(RunConfig))
