"""What was made of each base? Adapters under the base they were trained on, merged and quantized models under what they are of.

The same records as in `lineage`, read the other way round. Grouping by name would put a merge into the original base and one
into the dequantized base, or two bases of one name, side by side as if they were alternatives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.errors import QuantkitError
from quantkit_registry.adapters import ADAPTER_CONFIG, read_adapter
from quantkit_registry.lineage import how_made
from quantkit_registry.records import BaseReference
from quantkit_registry.store import Artifact, Registry

NO_BASE = "no base recorded"


@dataclass(slots=True)
class Branch:
    """A base or an artifact, and what was made from it."""

    name: str
    what: str
    """How it was made; of a base, its fingerprint or that none was recorded."""
    kind: str
    """`base`, `adapter` or `model`."""
    hash: str | None = None
    mark: str = ""
    """What its gate found wrong; empty where it passed or has none."""
    made: list["Branch"] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        said = {key: getattr(self, key) for key in ("name", "kind", "what", "hash")} | {"mark": self.mark or None}
        return said | {"made": [branch.to_dict() for branch in self.made]}

    def lines(self, depth: int = 0) -> list[str]:
        """Return the tree as indented lines."""
        lead = "  " * depth + ("└ " if depth else "")
        known = f" [{self.hash[:12]}]" if self.hash else ""
        marked = f" MARKED: {self.mark}" if self.mark else ""
        return [
            f"{lead}{self.name}: {self.what}{known}{marked}",
            *(line for item in self.made for line in item.lines(depth + 1)),
        ]


def forest(registry: Registry) -> list[Branch]:
    """Return one tree per base, in the order of names: its snapshot, adapters, quantized bases, and what was made of those.

    An artifact stands under the nearest parent that is in the registry, else under its base. Adapters of others stand under
    the base that their configuration names.
    """
    entries = [entry for entry in registry.entries() if entry.record is not None]
    branches = {entry.path: _branch(entry) for entry in entries}
    bases: dict[str, Branch] = {}
    for entry in entries:
        parent = _parent(entry, entries)
        owner = _base(bases, _origin(entry, entries)) if parent is None else branches[parent.path]
        owner.made.append(branches[entry.path])
    for entry in registry.entries():
        if entry.record is None and (entry.path / ADAPTER_CONFIG).is_file() and entry.origin != "broken":
            _foreign(bases, entry)
    return [bases[key] for key in sorted(bases, key=lambda key: bases[key].name.casefold())]


def _branch(entry: Artifact) -> Branch:
    record = entry.record
    kind = record.kind if record is not None else "model"
    gate = record.verification.get("gate") if record is not None else None
    failed = isinstance(gate, Mapping) and gate.get("outcome") == "failed"
    reasons = gate.get("reasons", ()) if failed and isinstance(gate, Mapping) else ()
    return Branch(entry.name, how_made(entry), kind, entry.hash, "; ".join(map(str, reasons)))


def _parent(entry: Artifact, entries: Iterable[Artifact]) -> Artifact | None:
    """Return the nearest parent that is here; by hash, else by name where no hash was recorded."""
    for parent in entry.record.parents if entry.record is not None else ():
        for other in entries:
            same = other.hash == parent.artifact if parent.artifact else other.name == parent.name
            if same and other.path != entry.path:
                return other
    return None


def _origin(entry: Artifact, entries: Iterable[Artifact]) -> BaseReference:
    """Return the base of an artifact; of a base that is an artifact here, the original that it was made from."""
    base = entry.record.base if entry.record is not None else BaseReference(name_or_path=NO_BASE)
    under = next((other.record for other in entries if str(other.path.resolve()) == base.name_or_path), None)
    return under.base if under is not None else base


def _base(bases: dict[str, Branch], base: BaseReference) -> Branch:
    """Return the branch of a base, found by its fingerprint; a base without one by its name."""
    key = base.fingerprint or base.name_or_path
    if key not in bases:
        revision = f" at {base.revision}" if base.revision else ""
        what = f"base{revision}, {base.fingerprint[:23] if base.fingerprint else 'no fingerprint'}"
        bases[key] = Branch(base.name_or_path, what, "base")
    return bases[key]


def _foreign(bases: dict[str, Branch], entry: Artifact) -> None:
    try:
        stored = read_adapter(entry.path)
    except QuantkitError as error:
        described, name = f"unreadable: {error}", NO_BASE
    else:
        described, name = stored.describe(), stored.base or NO_BASE
    owner = next((branch for branch in bases.values() if branch.name == name), None)
    if owner is None:
        owner = bases.setdefault(name, Branch(name, "base, named by an adapter of others", "base"))
    owner.made.append(Branch(entry.name, f"{described}, its recipe not recorded (quantkit registry adopt)", "adapter"))
