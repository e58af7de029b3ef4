"""Which storage formats are there to be exported, quantkit's own and those that plugins declare?

A plugin that owns a method may declare what becomes of a format that is its alone (`declare_exports`), and rewrite it itself
(`export_model`). What it declares is looked at when `quantkit export` runs; a row that breaks a rule costs only itself, and the
reason is told. A table in the core that names every method's format, the alternative, cannot know those of others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.errors import did_you_mean
from quantkit.exporting.answers import OUTCOMES, SOURCES, TARGETS, Answer, Row, route
from quantkit.exporting.table import TABLE
from quantkit.methods import Methods, Source

KINDS = {
    "bitsandbytes-4bit": "bnb-4bit",
    "bitsandbytes-8bit": "bnb-int8",
    "gptq": "gptq",
    "awq": "awq",
    "torchao": "torchao",
    "fp8": "fp8",
}
"""Storage kind (`StoredWeights.kind`) to the source of the table; `LOOKED_INTO` need a look at their facts."""
LOOKED_INTO = ("dense", "gguf", "compressed-tensors")
WORD = re.compile(r"[a-z0-9][a-z0-9_-]*")
STEPS = ("none", "route", "plugin")
"""Steps that a plugin may name; the others are the core's, for formats that it reads."""
REWRITTEN = ("dense", "awq", "gptq", "compressed-tensors")
"""Targets that `export_model` may give: what `save_pretrained` writes and plain loaders read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What can be exported to what, on whose word."""

    sources: Mapping[str, str] = field(default_factory=lambda: SOURCES)
    """Source to what the table calls it, in its order."""
    table: Mapping[tuple[str, str], Answer] = field(default_factory=lambda: TABLE)
    """(source, target) to the answer."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """Source that a plugin declares to its method."""
    broken: tuple[str, ...] = ()
    """Why rows of plugins are left out, in sentences."""
    methods: tuple[str, ...] | None = None
    """The methods that can be asked for; None: not known."""

    def source_of(self, kind: str) -> str:
        """Return the source of a storage kind that needs no look at its facts; `other` where nobody speaks for it."""
        return KINDS.get(kind, kind if kind in self.owners else "other")

    def not_installed(self, answer: Answer) -> list[str]:
        """Return the methods in an answer's commands that cannot be asked for here."""
        named = [] if self.methods is None else re.findall(r"--method (\w+)", answer.how)
        return [name for name in named if name not in (self.methods or ())]

    def rewritten_by(self, method: str) -> dict[str, Answer]:
        """Return target → answer for what a method's own `export_model` writes."""
        own = {source for source, owner in self.owners.items() if owner == method}
        return {target: answer for (source, target), answer in self.table.items() if source in own and answer.step == "plugin"}


def known_rows(methods: Methods, *, distribution: str = "") -> Rows:
    """Return quantkit's own rows and those that plugins declare (of one distribution only, if one is named)."""
    sources, table, owners, broken = dict(SOURCES), dict(TABLE), dict[str, str](), list[str]()
    other = sources.pop("other")
    for source, answer in methods.declared_exports():
        if distribution and source.distribution.split()[0] != distribution:
            continue
        if fault := _fault_in_answer(methods, source, answer):
            broken.append(f"{source}: {fault}")
            continue
        for kind, row in answer.items():
            if fault := _fault_in_row(kind, row, owners) or _fault_in_steps(kind, row, methods, source):
                broken.append(f"{source}: {fault}")
                continue
            sources[kind], owners[kind] = row.title, source.plugin
            no_way = route("no", "Its method names no way. Start from the 16-bit model it was made from.", str(source))
            table |= {(kind, target): row.answers.get(target, no_way) for target in TARGETS}
    return Rows(sources | {"other": other}, table, owners, tuple(broken), methods.names)


def _fault_in_answer(methods: Methods, source: Source, answer: Any) -> str:
    if isinstance(answer, Exception):
        return f"declare_exports raised {type(answer).__name__}: {answer}"
    if not isinstance(answer, Mapping):
        return f"declare_exports returned {type(answer).__name__}, not a mapping of storage kinds to rows"
    return "" if source.plugin in methods.names else "declares exports, but owns no method; add declare_method"


def _fault_in_row(kind: Any, row: Any, owners: Mapping[str, str]) -> str:
    if not isinstance(kind, str) or not WORD.fullmatch(kind):
        return f"declare_exports names the storage kind {kind!r}; it is a quant_method in small letters"
    if kind in KINDS or kind in LOOKED_INTO or kind in SOURCES:
        return f"declare_exports names {kind!r}, which quantkit reads and answers for itself"
    if kind in owners:
        return f"declare_exports names {kind!r}, which {owners[kind]} declares; the first is used"
    if not isinstance(row, Row) or not isinstance(row.title, str) or not isinstance(row.answers, Mapping):
        return f"declare_exports gives {kind} {row!r}, not a quantkit.exporting.Row with a title and answers"
    if unknown := [target for target in row.answers if target not in TARGETS]:
        near = did_you_mean(str(unknown[0]), list(TARGETS))
        return f"the row {kind} answers for {unknown[0]!r}.{near} Known: {', '.join(TARGETS)}"
    return ""


def _fault_in_steps(kind: str, row: Row, methods: Methods, source: Source) -> str:
    for target, answer in row.answers.items():
        where = f"the row {kind}, {target}:"
        if not isinstance(answer, Answer) or answer.outcome not in OUTCOMES or not (answer.how and answer.source):
            return f"{where} {answer!r} is no Answer with an outcome, how it is had and what that rests on"
        if answer.step not in STEPS:
            return f"{where} the step {answer.step!r} is quantkit's own; {', '.join(STEPS)} are a plugin's"
        if (answer.outcome == "as it is") != (answer.step == "none") or (answer.outcome == "no" and answer.step != "route"):
            return f"{where} {answer.outcome!r} does not go with the step {answer.step!r}"
        if answer.step == "plugin" and target not in REWRITTEN:
            return f"{where} export_model gives {', '.join(REWRITTEN)}; for others name a route"
        if answer.step == "plugin" and not methods.implements(source.plugin, "export_model"):
            return f"{where} the step is 'plugin', but the plugin implements no export_model"
    return ""
