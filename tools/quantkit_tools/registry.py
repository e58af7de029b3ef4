"""Which models and adapters are in these folders, what are they really, and are they intact? (`quantkit registry …`)

Answered from manifests, records and file headers; nothing is loaded, so listing a hundred artifacts takes a moment and
needs no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from quantkit import console
from quantkit.console import Column, format_bytes
from quantkit.errors import UsageError, VerificationError, did_you_mean
from quantkit.methods import installed_methods
from quantkit_registry.detect import Detection, detect
from quantkit_registry.lineage import lineage
from quantkit_registry.store import Artifact, Registry
from quantkit_registry.verify import Check, verify
from quantkit_tools.listing import describe, scores_of

HELP_FLAGS = ("-h", "--help", "help")


@dataclass(frozen=True)
class Common:
    """Flags that every registry command takes."""

    root: Path | None = None
    """Folder of artifacts; default $QUANTKIT_REGISTRY or artifacts."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


@dataclass(frozen=True)
class Ls(Common):
    """List models and adapters under the root, ours and others', with what was measured on them."""


@dataclass(frozen=True, kw_only=True)
class Show(Common):
    """Show one artifact's record and results."""

    artifact: tyro.conf.Positional[str]
    """Name, path, or the first digits of its hash."""


@dataclass(frozen=True, kw_only=True)
class Verify(Common):
    """Check files, weights, name, base and parents of artifacts; exit code 3 if a check fails."""

    artifacts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, paths or hashes; without any, every artifact of ours under the root."""


@dataclass(frozen=True, kw_only=True)
class Lineage(Common):
    """Show what an artifact was made from."""

    artifact: tyro.conf.Positional[str]
    """Name, path, or the first digits of its hash."""


@dataclass(frozen=True, kw_only=True)
class Detect(Common):
    """Say what a folder, weight file or hub id holds, and on whose word."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folders, .safetensors or .gguf files, or hub ids."""
    method: str | None = None
    """Your own choice of method: it overrules metadata, never the tensors."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""


def main(arguments: list[str]) -> int:
    """Run `quantkit registry COMMAND`."""
    if not arguments or arguments[0] in HELP_FLAGS:
        print(usage())
        return 0 if arguments else UsageError.exit_code
    word, *rest = arguments
    if word not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(f"quantkit registry has no command {word!r}.{did_you_mean(word, COMMANDS)} Known: {known}.")
    flags, run = COMMANDS[word]
    command = tyro.cli(flags, prog=f"quantkit registry {word}", args=rest, config=(tyro.conf.FlagCreatePairsOff,))
    if command.json:
        console.use_stderr()
    return run(command, Registry(command.root))


def usage() -> str:
    """Return the text of `quantkit registry --help`."""
    lines = "\n".join(f"  {word:<9}{str(flags.__doc__).splitlines()[0]}" for word, (flags, _) in COMMANDS.items())
    return f"usage: quantkit registry COMMAND [OPTIONS]\n\n{lines}\n\nquantkit registry COMMAND --help says more."


def _ls(command: Ls, registry: Registry) -> int:
    entries = registry.entries()
    scores = {entry.name: scores_of(registry, entry) for entry in entries}
    if command.json:
        described = [describe(entry) | {"scores": scores[entry.name]} for entry in entries]
        console.emit_json({"root": str(registry.root), "artifacts": described})
        return 0
    tasks = sorted({task for row in scores.values() for task in row})
    columns = [
        Column("name"),
        Column("kind"),
        Column("method"),
        Column("stored", priority=1),
        Column("size", "right", priority=2),
        Column("base", priority=3),
        Column("origin", priority=4),
        *(Column(task, "right") for task in tasks),
    ]
    rows = []
    for entry in entries:
        said = describe(entry)
        cells = [said["name"], said["kind"], said["method"], said["stored"], format_bytes(said["size_bytes"]), said["base"]]
        rows.append([*cells, said["origin"], *(scores[entry.name].get(task) for task in tasks)])
    broken = [f"{entry.name} is broken: {entry.fault}" for entry in entries if entry.fault]
    console.table(f"Artifacts under {registry.root}", columns, rows, caption="\n".join(broken))
    return 0


def _show(command: Show, registry: Registry) -> int:
    entry = registry.find(command.artifact)
    results = registry.results(entry.hash) if entry.hash else {}
    if command.json:
        record = None if entry.record is None else entry.record.to_dict()
        console.emit_json(describe(entry) | {"record": record, "results": results})
        return 0
    said = describe(entry)
    said["size_bytes"] = format_bytes(entry.size_bytes)
    console.table(entry.name, ["", ""], [[key, value] for key, value in said.items() if value is not None and key != "name"])
    if entry.record is not None:
        data = entry.record.to_dict()
        sections = [key for key in data if isinstance(data[key], dict) and data[key]]
        rows = [[section, key, _cell(value)] for section in sections for key, value in data[section].items()]
        console.table("Record", ["section", "key", "value"], rows)
    if results:
        rows = [[task, text] for task, text in scores_of(registry, entry).items()]
        console.table("Results", ["task", "score"], rows, caption="--json shows them whole")
    return 0


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items() if not isinstance(item, dict | list)) or "…"
    if isinstance(value, list):
        plain = [str(item) for item in value if not isinstance(item, dict | list)]
        return ", ".join(plain) if plain else f"{len(value)} entries" if value else None
    return value


def _verify(command: Verify, registry: Registry) -> int:
    named = [registry.find(name) for name in command.artifacts]
    entries = named or [entry for entry in registry.entries() if entry.origin in ("quantkit", "broken")]
    claims = installed_methods().claims()
    checked = [(entry, verify(registry, entry, claims=claims)) for entry in entries]
    failed = [entry for entry, checks in checked if any(check.outcome == "failed" for check in checks)]
    if command.json:
        report = [{"name": e.name, "hash": e.hash, "checks": [check.to_dict() for check in checks]} for e, checks in checked]
        console.emit_json({"root": str(registry.root), "artifacts": report, "failed": len(failed)})
    else:
        _print_checks(checked, failed)
    return VerificationError.exit_code if failed else 0


def _print_checks(checked: Sequence[tuple[Artifact, list[Check]]], failed: Sequence[Artifact]) -> None:
    for entry, checks in checked:
        console.table(entry.name, ["check", "outcome", "found"], [[c.what, c.outcome, c.detail] for c in checks])
    if failed:
        console.warn(f"{len(failed)} of {len(checked)} artifacts failed: {', '.join(entry.name for entry in failed)}")
    else:
        console.say(f"{len(checked)} artifacts checked, none failed")


def _lineage(command: Lineage, registry: Registry) -> int:
    node = lineage(registry, registry.find(command.artifact))
    if command.json:
        console.emit_json(node.to_dict())
    else:
        for line in node.lines():
            console.say(line)
    return 0


def _detect(command: Detect, registry: Registry) -> int:
    claims = installed_methods().claims()
    method = installed_methods().info(command.method).name if command.method else None
    found = [
        detect(_known(registry, path), claims=claims, explicit=method, revision=command.revision) for path in command.paths
    ]
    if command.json:
        console.emit_json({"detections": [item.to_dict() for item in found]})
        return 0
    for item in found:
        rows = [[key, value] for key, value in _facts(item).items() if value is not None]
        console.table(item.path, ["", ""], rows)
        console.table("On whose word", ["source", "statement"], [list(pair) for pair in item.evidence])
    return 0


def _known(registry: Registry, path: str) -> str:
    """Return the path of an artifact under the root when that is what was named."""
    inside = registry.root / path
    return str(inside) if not Path(path).exists() and "/" not in path and path != ".." and inside.is_dir() else path


def _facts(item: Detection) -> dict[str, object]:
    return {
        "kind": item.kind,
        "method": item.method,
        "stored": item.stored.describe() if item.stored else None,
        "weights_bits": item.spec.weights_bits if item.spec else None,
        "lm_head_dtype": item.spec.lm_head_dtype if item.spec else None,
        "format": item.format,
        "base": item.base,
        "revision": item.revision,
        "metadata": item.origin,
    }


COMMANDS: dict[str, tuple[type[Common], Callable[[Any, Registry], int]]] = {
    "ls": (Ls, _ls),
    "show": (Show, _show),
    "verify": (Verify, _verify),
    "lineage": (Lineage, _lineage),
    "detect": (Detect, _detect),
}
