"""Which numbers in these results cannot be believed, and why? (`quantkit audit RESULTS…`)

Reads results of quantkit, of lm-eval and of other evaluations (metrics as JSON, summaries as CSV) without loading anything.
Says for each number what was found and what would be needed; silence means that no check found a fault, not that there is none.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from quantkit import console
from quantkit.console import Column
from quantkit.errors import UsageError, VerificationError
from quantkit.layout import counted
from quantkit_tools.small_flags import read_small_flags

if TYPE_CHECKING:
    from quantkit.audit import Audit, Finding, Reading

SCHEMA_VERSION = 1
HASH_DIGITS = 64
OTHER = "other"
EACH_ALONE = "Each is judged against the best alone; of many comparisons some differ by luck."


@dataclass(frozen=True)
class Flags:
    """Say what cannot be believed in result files, and why."""

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RESULTS…]")]
    """Result files, folders of them, or registries."""
    strict: bool = False
    """Exit with 3 for warnings too."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit audit`; 3: an error was found, 2: a file could not be read, 0: neither."""
    flags = read_small_flags(Flags, "audit", arguments)
    if not flags.paths:
        raise UsageError("no path was given; quantkit audit RESULTS… names files or folders of results")
    if flags.json:
        console.use_stderr()
    from quantkit.audit import read_paths

    readings = read_paths([Path(path).expanduser() for path in flags.paths])
    results = [reading for reading in readings if reading.kind != OTHER]
    if not results:
        raise UsageError(f"{', '.join(flags.paths)}: no result file in it ({counted(len(readings), 'file')} looked at)")
    audit = judged(results)
    unreadable = [fault for reading in results for fault in reading.faults]
    counts = Counter(finding.severity for finding in audit.findings)
    show(results, audit, skipped=len(readings) - len(results))
    for fault in unreadable:
        console.warn(f"could not be read: {fault}")
    console.say(
        f"{_count(counts['error'], 'error')}, {_count(counts['warning'], 'warning')}, {_count(counts['note'], 'note')}"
        f" in {_count(len(results), 'file')}" + (f"; {len(unreadable)} places could not be read" if unreadable else "")
    )
    if flags.json:
        console.emit_json(as_data(results, audit, unreadable))
    if counts["error"] or (flags.strict and counts["warning"]):
        return VerificationError.exit_code
    return UsageError.exit_code if unreadable else 0


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def judged(readings: Sequence["Reading"]) -> "Audit":
    """Return the findings of all checks, those that need names and registries included."""
    from quantkit.audit import find_faults
    from quantkit.audit.faults import joined, ordered
    from quantkit.methods import installed_methods
    from quantkit_tools.auditing.names import claims_of
    from quantkit_tools.auditing.registry import filed_faults

    measured = [item for reading in readings for item in reading.measured]
    audit = find_faults(measured, claims_of((item.model for item in measured), installed_methods().names))
    return replace(audit, findings=ordered([*audit.findings, *joined(filed_faults(measured))]))


def show(readings: Sequence["Reading"], audit: "Audit", *, skipped: int) -> None:
    """Print what was read, one table of findings per file, and the differences from the best."""
    together: dict[str, list[Reading]] = {}
    for reading in readings:
        together.setdefault(_place(reading.file, reading.kind), []).append(reading)
    rows = [_summary(place, same) for place, same in together.items()]
    columns = [
        Column("file"),
        Column("kind"),
        Column("files", "right"),
        Column("models", "right"),
        Column("numbers", "right"),
    ]
    console.table("Results read", columns, rows, caption=f"{counted(skipped, 'other file')} passed by" if skipped else "")
    for reading in readings:
        if reading.understood:
            console.say(_names_taken(reading))
    kinds = {reading.file: reading.kind for reading in readings}
    tables: dict[str, list[list[object]]] = {}
    for finding in audit.findings:
        tables.setdefault(_place(finding.file, kinds.get(finding.file, "")), []).append(_cells(finding))
    for place, found in tables.items():
        console.table(place, [Column("severity"), Column("model\nnumber"), Column("found\n→ needed")], found)
    if audit.differences:
        compared = [
            [item.other.task, item.metric, item.best.model, item.other.model, "yes" if item.real else "no", item.said]
            for item in audit.differences
        ]
        heads = [
            Column("task"),
            Column("metric"),
            Column("best"),
            Column("other"),
            Column("differ"),
            Column("judged", priority=1),
        ]
        console.table("Against the best", heads, compared, caption=EACH_ALONE)


def _place(file: str, kind: str) -> str:
    """Return what a file is shown as: a filed result of ours as its registry's folder, model and task tell it apart there."""
    parts = Path(file).parts
    return str(Path(*parts[:-2])) if kind == "quantkit" and len(parts) > 2 and len(parts[-2]) == HASH_DIGITS else file


def _summary(place: str, same: "Sequence[Reading]") -> list[object]:
    measured = [item for reading in same for item in reading.measured]
    models = len({(item.model, item.artifact) for item in measured})
    return [place, same[0].kind, len(same), models, sum(len(item.numbers) for item in measured)]


def _names_taken(reading: "Reading") -> str:
    """Say which columns of an unknown layout were taken for what, and which were not understood."""
    taken = [name if name == field else f"{name} as {field}" for name, field in reading.understood.items()]
    left = f"; not understood: {', '.join(reading.not_understood)}" if reading.not_understood else ""
    return f"{reading.file}: read {', '.join(taken)}{left}"


def _cells(finding: "Finding") -> list[object]:
    return [f"{finding.severity}\n{finding.check}", f"{finding.model}\n{finding.where}", f"{finding.found}\n→ {finding.needed}"]


def as_data(readings: Sequence["Reading"], audit: "Audit", unreadable: Sequence[str]) -> dict[str, Any]:
    """Return the one object of `--json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "files": [
            {
                "file": reading.file,
                "kind": reading.kind,
                "models": sorted({item.model for item in reading.measured}),
                "understood": dict(reading.understood),
                "not_understood": list(reading.not_understood),
            }
            for reading in readings
        ],
        "findings": [asdict(finding) for finding in audit.findings],
        "differences": [
            {
                "task": item.other.task,
                "metric": item.metric,
                "best": item.best.model,
                "other": item.other.model,
                "difference": item.value,
                "real": item.real,
                "judged": item.said,
            }
            for item in audit.differences
        ],
        "unreadable": list(unreadable),
    }
