"""Where does an artifact come from? Its parents and, at the root, the base, as far as records tell."""

from dataclasses import dataclass, field
from typing import Any

from quantkit.plan import Stage
from quantkit_registry.store import Artifact, Registry

MAX_DEPTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One step back, with what it was made from."""

    name: str
    what: str
    """How it was made, e.g. `LoRa16 trained on QLORA weights, kept as adapter`."""
    hash: str | None = None
    found: bool = True
    """Whether it stands in the registry; a base on the hub or elsewhere does not."""
    origins: tuple["Node", ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "what": self.what,
            "hash": self.hash,
            "found": self.found,
            "origins": [node.to_dict() for node in self.origins],
        }

    def lines(self, depth: int = 0) -> list[str]:
        """Return the tree as indented lines, newest first."""
        mark = "  " * depth + ("└ " if depth else "")
        text = f"{mark}{self.name}: {self.what}" + (f" [{self.hash[:12]}]" if self.hash else "")
        return [text, *(line for node in self.origins for line in node.lines(depth + 1))]


def lineage(registry: Registry, artifact: Artifact) -> Node:
    """Return the tree of what an artifact was made from; parents are found by hash, else by name."""
    return _node(artifact, registry.artifacts(), ())


def _node(artifact: Artifact, known: list[Artifact], seen: tuple[str, ...]) -> Node:
    record = artifact.record
    if record is None:
        return Node(name=artifact.name, what=f"no record ({artifact.origin})", hash=artifact.hash)
    origins = []
    for parent in record.parents if len(seen) < MAX_DEPTH and artifact.name not in seen else ():
        match = next((other for other in known if parent.artifact and other.hash == parent.artifact), None)
        by_name = next((other for other in known if parent.artifact is None and other.name == parent.name), None)
        if found := match or by_name:
            origins.append(_node(found, known, (*seen, artifact.name)))
        else:
            origins.append(Node(name=parent.name, what="not in this registry", hash=parent.artifact, found=False))
    if not record.parents:
        revision = f" at {record.base.revision}" if record.base.revision else ""
        taken = record.base.fingerprint or "no fingerprint"
        origins.append(Node(name=record.base.name_or_path, what=f"base{revision}, {taken[:23]}", found=False))
    return Node(name=record.name, what=how_made(artifact), hash=artifact.hash, origins=tuple(origins))


def how_made(artifact: Artifact) -> str:
    """Return how an artifact came to be, in words taken from its record."""
    record = artifact.record
    if record is None:
        return artifact.origin
    if record.recipe.stage is Stage.TRAINED:
        return f"quantized with {record.recipe.method}"
    adapter = record.adapter.label if record.adapter and record.adapter.kind != "NoPeft" else None
    steps = [f"{adapter} on {record.recipe.method} weights" if adapter else f"{record.recipe.method} weights"]
    if record.kind == "adapter":
        steps.append("kept as adapter")
    elif record.merge is not None:
        stored = record.quantization.weights_dtype if record.quantization.is_quantized else record.merge.dtype
        steps.append(f"merged ({record.merge.policy}), stored as {stored}")
    return ", ".join(steps)
