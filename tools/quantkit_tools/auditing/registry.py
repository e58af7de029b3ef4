"""Do filed results belong to what stands in the registry now?

A result is filed under the hash of the content it was measured on. What is compared: folder, file name and content of the
result, and the artifact of that hash, which may have changed or gone. A folder that holds results only keeps its artifacts
elsewhere, so none of them is missed there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.audit import Finding, Measured
from quantkit.errors import QuantkitError
from quantkit_registry.names import parse_name
from quantkit_registry.store import HASH, RESULTS, Artifact, Registry

AGAIN = "quantkit evaluate on the artifact as it is now"


def filed_faults(measured: Sequence[Measured]) -> list[Finding]:
    """Return what is wrong with results that lie in the results folder of a registry."""
    roots: dict[Path, list[Artifact]] = {}
    found: list[Finding] = []
    for item in measured:
        path = Path(item.file).resolve()
        if item.source != "quantkit" or not HASH.fullmatch(path.parent.name) or path.parent.parent.name != RESULTS:
            continue
        root = path.parents[2]
        if root not in roots:
            try:
                roots[root] = Registry(root).entries()
            except QuantkitError:
                roots[root] = []
        found += _filed(item, path, roots[root])
    return list(dict.fromkeys(found))


def _filed(item: Measured, path: Path, entries: Sequence[Artifact]) -> Iterator[Finding]:
    folder = path.parent.name
    if item.task != path.stem:
        yield item.finding("error", "misfiled", "task", f"filed as {path.stem}, but says task {item.task}", AGAIN)
    if item.artifact is not None and item.artifact != folder:
        said = f"filed under {folder[:12]}…, but measured on {item.artifact[:12]}…"
        yield item.finding("error", "misfiled", "artifact", said, AGAIN)
        return
    same = next((entry for entry in entries if entry.hash == folder), None)
    named = next((entry for entry in entries if entry.name == item.model), None)
    if same is not None:
        yield from _of_record(item, same, path.parents[2])
    elif named is not None and named.hash is not None:
        said = f"measured on {folder[:12]}…; {named.name} has other content now, {named.hash[:12]}…"
        yield item.finding("error", "artifact changed", "artifact", said, AGAIN)
    elif named is not None and named.origin == "broken":
        yield item.finding("warning", "artifact gone", "artifact", f"{named.name} is broken: {named.fault}", AGAIN)
    elif named is None and _is_ours(item.model) and any(entry.hash for entry in entries):
        said = f"no artifact of this name or hash stands in {path.parents[2].name}"
        yield item.finding("warning", "artifact gone", "artifact", said, "the artifact back, or its results taken away")


def _of_record(item: Measured, entry: Artifact, root: Path) -> Iterator[Finding]:
    if entry.record is None:
        return
    spec = entry.record.quantization
    if item.method is not None and (item.method, item.bits) != (spec.method, spec.weights_bits):
        said = f"the result says {item.method}, {item.bits} bits, the artifact's record {spec.method}, {spec.weights_bits} bits"
        yield item.finding("error", "label", "artifact.quantization", said, "quantkit registry verify, then evaluate again")
    overlap = entry.record.data.get("overlap")
    if isinstance(overlap, int) and overlap > 0:
        said = (
            f"the record says that {overlap} questions of the set it was judged on in training also stood in its training data"
        )
        needed = "scores on other rows, or on that set without these"
        yield replace(item.finding("warning", "overlap", "", said, needed), file=str(root), where="training data")


def _is_ours(name: str) -> bool:
    """Whether a name is one that quantkit gives; others are folders or hub ids that stand elsewhere."""
    try:
        parsed = parse_name(name)
    except QuantkitError:
        return False
    return parsed.dataset is not None
