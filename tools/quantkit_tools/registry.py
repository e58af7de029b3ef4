"""Which models and adapters are in these folders, what are they really, and are they intact? (`quantkit registry …`)

Answered from manifests, records and file headers; nothing is loaded, so listing a hundred artifacts takes a moment and
needs no torch.
"""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from quantkit import console
from quantkit.console import Column, format_bytes
from quantkit.errors import UsageError, VerificationError, did_you_mean
from quantkit.layout import cell_text, counted
from quantkit.methods import Methods, installed_methods
from quantkit_registry.detect import Detection, detect
from quantkit_registry.forest import forest
from quantkit_registry.lineage import lineage
from quantkit_registry.store import Artifact, Registry
from quantkit_registry.verify import Check, verify
from quantkit_tools.folder_flag import with_own_folder_flag
from quantkit_tools.listing import degenerate_on, describe, scores_of
from quantkit_tools.verdict import failed_gate

MARK = re.compile(r"(?<!NO) (?=[A-Z]{2})")
"""Where a mark begins in the text of a score."""
LONGEST_CELL = 12
"""Entries of a collection that one cell shows."""


class Parser(ArgumentParser):
    """Says in one line what is wrong with the flags, as the other verbs do."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of ending the process."""
        raise UsageError(f"{message}; {self.prog} --help lists what there is")


def main(arguments: list[str]) -> int:
    """Run `quantkit registry COMMAND`."""
    word = next((text for text in arguments if not text.startswith("-")), None)
    known = (*COMMANDS, "adopt")
    if word is not None and word not in known:
        raise UsageError(f"quantkit registry has no command {word!r}.{did_you_mean(word, known)} Known: {', '.join(known)}.")
    if word == "adopt":
        from quantkit_tools import adopt

        return adopt.main([text for index, text in enumerate(arguments) if index != arguments.index(word)])
    flags = build_parser().parse_args(with_own_folder_flag(arguments, "registry"))
    if flags.json:
        console.use_stderr()
    registry = Registry(flags.registry)
    if flags.registry is not None and not registry.root.is_dir():
        console.warn(f"{flags.registry}: no such folder; --registry names the folder that holds artifacts")
    return COMMANDS[flags.command](flags, registry)


def build_parser() -> Parser:
    """Return the parser; argparse, because building flags from dataclasses would take half of the time `ls` may take."""
    common = Parser(add_help=False)
    common.add_argument("--registry", metavar="DIR", help="folder of artifacts; default $QUANTKIT_REGISTRY or artifacts")
    common.add_argument("--json", action="store_true", help="print one JSON object; human text goes to stderr")
    parser = Parser(prog="quantkit registry", description="What is in these folders, and is it what it says?")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("ls", parents=[common], help="models and adapters under the root, ours and others', with scores")
    named = "name, path, or the first digits of its hash"
    commands.add_parser("tree", parents=[common], help="each base with its adapters, and what was made of them")
    show = commands.add_parser("show", parents=[common], help="one artifact's record and results")
    show.add_argument("artifact", help=named)
    check = commands.add_parser("verify", parents=[common], help="check files, weights, name, base, parents; exit code 3")
    check.add_argument("artifacts", nargs="*", help=f"{named}; without any, every artifact of ours under the root")
    origin = commands.add_parser("lineage", parents=[common], help="what an artifact was made from")
    origin.add_argument("artifact", help=named)
    found = commands.add_parser("detect", parents=[common], help="what anything holds, and on whose word")
    found.add_argument("paths", nargs="+", help="folders, .safetensors or .gguf files, or hub ids")
    commands.add_parser("adopt", help="take an adapter made elsewhere in, with the recipe you state (adopt --help)")
    found.add_argument("--method", help="your own choice of method: it overrules metadata, never the tensors")
    found.add_argument("--revision", help="commit, tag or branch of a hub id")
    return parser


def _ls(flags: Namespace, registry: Registry) -> int:
    entries = registry.entries()
    scores = {entry.name: scores_of(registry, entry) for entry in entries}
    broken_answers = {entry.name: degenerate_on(registry, entry) for entry in entries}
    if flags.json:
        described = [
            describe(entry) | {"scores": scores[entry.name], "degenerate": broken_answers[entry.name]} for entry in entries
        ]
        console.emit_json({"root": str(registry.root), "artifacts": described})
        return 0
    tasks = sorted({task for row in scores.values() for task in row})
    columns = [
        Column("name"),
        Column("kind"),
        Column("method"),
        Column("stored"),
        Column("size", "right", priority=2),
        Column("base", priority=3),
        Column("origin", priority=4),
        *(Column(task, "right") for task in tasks),
    ]
    rows = []
    for entry in entries:
        said = describe(entry)
        cells = [said["name"], said["kind"], said["method"], said["stored"], format_bytes(said["size_bytes"]), said["base"]]
        rows.append([*cells, said["origin"], *(_stacked(scores[entry.name].get(task)) for task in tasks)])
    broken = [f"{entry.name} is broken: {entry.fault}" for entry in entries if entry.fault]
    marked = [f"{entry.name} failed its gate: {reasons}" for entry in entries if (reasons := failed_gate(entry))]
    marked += [f"{name} is degenerate: {_marks_text(marks)}" for name, marks in broken_answers.items() if marks]
    console.table(f"Artifacts under {registry.root}", columns, rows, caption="\n".join([*broken, *marked]))
    return 0


def _stacked(score: str | None) -> str | None:
    """Return a score with its marks below it, as narrow as they are: the name beside it is what a reader looks for."""
    return score and MARK.sub("\n", score)


def _marks_text(marks: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{', '.join(names)} on {task}" for task, names in marks.items())


def _tree(flags: Namespace, registry: Registry) -> int:
    trees = forest(registry)
    if flags.json:
        console.emit_json({"root": str(registry.root), "bases": [tree.to_dict() for tree in trees]})
        return 0
    for line in (line for tree in trees for line in tree.lines()):
        console.say(line)
    if not trees:
        console.say(f"{registry.root}: no artifacts (none)")
    return 0


def _show(flags: Namespace, registry: Registry) -> int:
    entry = registry.find(flags.artifact)
    results = registry.results(entry.hash) if entry.hash else {}
    degenerate = degenerate_on(registry, entry)
    if flags.json:
        record = None if entry.record is None else entry.record.to_dict()
        console.emit_json(describe(entry) | {"record": record, "results": results, "degenerate": degenerate})
        return 0
    said = describe(entry) | {"degenerate": _marks_text(degenerate) or None}
    said["size_bytes"] = format_bytes(entry.size_bytes)
    console.table(entry.name, ["", ""], [[key, value] for key, value in said.items() if value is not None and key != "name"])
    if entry.record is not None:
        rows = [row for name, section in entry.record.to_dict().items() for row in _record_rows(name, section)]
        console.table("Record", ["section", "key", "value"], rows)
    if results:
        rows = [[task, text] for task, text in scores_of(registry, entry).items()]
        console.table("Results", ["task", "score"], rows, caption="--json shows them whole")
    return 0


def _record_rows(name: str, section: object) -> Iterator[list[object]]:
    """Return section, key and value for each line of a section; one within it that would make a long line stands below it."""
    if not isinstance(section, dict):
        return
    below = {key: value for key, value in section.items() if isinstance(value, dict) and len(value) > LONGEST_CELL}
    for key, value in section.items():
        if key not in below:
            yield [name, key, _cell(value)]
    for key, value in below.items():
        yield from _record_rows(f"{name} {key}", value)


def _cell(value: object) -> object:
    """Return a record's value for a cell: short collections whole, of long ones how they begin, end, and how long they are."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell_text(_cell(item))}" for key, item in value.items()) or None
    if isinstance(value, list):
        if any(isinstance(item, dict | list) for item in value):
            return counted(len(value), "entry", "entries")
        texts = [cell_text(item) for item in value]
        if len(texts) > LONGEST_CELL:
            return f"{', '.join(texts[:3])}, … {texts[-1]} ({counted(len(texts), 'entry', 'entries')})"
        return ", ".join(texts) or None
    return value


def _verify(flags: Namespace, registry: Registry) -> int:
    named = [registry.find(name) for name in flags.artifacts]
    entries = named or [entry for entry in registry.entries() if entry.origin in ("quantkit", "broken")]
    claims = installed_methods().claims()
    checked = [(entry, verify(registry, entry, claims=claims)) for entry in entries]
    failed = [entry for entry, checks in checked if any(check.outcome == "failed" for check in checks)]
    if flags.json:
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
        console.say(f"{counted(len(checked), 'artifact')} checked, none failed")


def _lineage(flags: Namespace, registry: Registry) -> int:
    node = lineage(registry, registry.find(flags.artifact))
    if flags.json:
        console.emit_json(node.to_dict())
    else:
        for line in node.lines():
            console.say(line)
    return 0


def _detect(flags: Namespace, registry: Registry) -> int:
    methods = installed_methods()
    found = [detect_named(registry, path, methods, method=flags.method, revision=flags.revision) for path in flags.paths]
    if flags.json:
        console.emit_json({"detections": [item.to_dict() for item in found]})
        return 0
    for item in found:
        rows = [[key, value] for key, value in _facts(item).items() if value is not None]
        console.table(item.path, ["", ""], rows)
        console.table("On whose word", ["source", "statement"], [list(pair) for pair in item.evidence])
    return 0


def detect_named(
    registry: Registry, path: str, methods: Methods, *, method: str | None = None, revision: str | None = None
) -> Detection:
    """Detect what a path, an artifact's name or a hub id means; `method` is the user's own choice, raises as `detect` does."""
    explicit = methods.info(method).name if method else None
    return detect(_known(registry, path), claims=methods.claims(), explicit=explicit, revision=revision)


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


COMMANDS: dict[str, Callable[[Namespace, Registry], int]] = {
    "ls": _ls,
    "tree": _tree,
    "show": _show,
    "verify": _verify,
    "lineage": _lineage,
    "detect": _detect,
}
