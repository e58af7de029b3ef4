"""What does one line of `quantkit registry ls` say about a folder? Facts for artifacts of ours, findings for all others."""

from collections.abc import Mapping
from typing import Any

from quantkit.errors import QuantkitError, VerificationError
from quantkit.headers import read_stored_weights
from quantkit.layout import digits
from quantkit.methods import installed_methods
from quantkit_registry.detect import detect
from quantkit_registry.lineage import how_made
from quantkit_registry.store import Artifact, Registry


def describe(entry: Artifact) -> dict[str, Any]:
    """Return one line of the listing as plain JSON data; what is not known is None."""
    said: dict[str, Any] = {
        "name": entry.name,
        "path": str(entry.path),
        "origin": entry.origin,
        "hash": entry.hash,
        "kind": None,
        "method": None,
        "weights_bits": None,
        "stored": None,
        "size_bytes": entry.size_bytes,
        "base": None,
        "made": None,
        "gate": None,
        "fault": entry.fault or None,
    }
    if entry.record is not None:
        spec = entry.record.quantization
        said_of_gate = entry.record.verification.get("gate")
        gate = said_of_gate if isinstance(said_of_gate, Mapping) else {}
        stored = "adapter for " if entry.record.kind == "adapter" else ""
        said |= {
            "kind": entry.record.kind,
            "method": entry.record.recipe.method,
            "weights_bits": spec.weights_bits,
            "stored": f"{stored}{spec.weights_dtype}",
            "base": entry.record.base.name_or_path,
            "made": how_made(entry),
            "gate": gate.get("outcome"),
        }
    elif entry.origin != "broken":
        said |= _foreign(entry)
    return said


def _foreign(entry: Artifact) -> dict[str, Any]:
    """Describe a folder that is not ours by what its files say; a disagreement is shown, not hidden."""
    try:
        found = detect(entry.path, claims=installed_methods().claims())
    except VerificationError:
        try:
            return {"kind": "model", "method": "disputed", "stored": read_stored_weights(entry.path).describe()}
        except QuantkitError:
            return {"method": "disputed", "stored": "tensors and config.json disagree"}
    except QuantkitError as error:
        return {"stored": "unreadable", "fault": str(error)}
    return {
        "kind": found.kind,
        "method": found.method,
        "weights_bits": None if found.spec is None else found.spec.weights_bits,
        "stored": None if found.stored is None else found.stored.describe(),
        "base": found.base,
    }


def scores_of(registry: Registry, entry: Artifact) -> dict[str, str]:
    """Return task → the task's own score as text, with its marks; results without a score are left out."""
    if entry.hash is None:
        return {}
    found = {}
    for task, data in registry.results(entry.hash).items():
        scores, metric = data.get("scores"), data.get("metric")
        score = scores.get(metric) if isinstance(scores, Mapping) and isinstance(metric, str) else None
        value = score.get("value") if isinstance(score, Mapping) else None
        if isinstance(value, int | float) and isinstance(score, Mapping):
            marks = data.get("marks")
            words = [str(mark) for mark in marks] if isinstance(marks, list) else []
            share = score.get("higher_is_better", True)  # perplexities and divergences are no shares
            found[task] = " ".join([f"{100 * value:.1f}%" if share else f"{metric} {digits(value)}", *words])
    return found


def degenerate_on(registry: Registry, entry: Artifact) -> dict[str, list[str]]:
    """Return task → the marks of its result that say the artifact is broken (EMPTY, LOOPS, …); tasks without are left out."""
    if entry.hash is None:
        return {}
    found = {}
    for task, data in registry.results(entry.hash).items():
        marks = data.get("degenerate")
        if isinstance(marks, list) and marks:
            found[task] = [str(mark) for mark in marks]
    return found
