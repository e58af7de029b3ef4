"""What did the gate say of an artifact? Told when it is made, with exit code 3, and wherever it is listed or shown."""

from collections.abc import Mapping
from typing import Any

from quantkit import console
from quantkit.errors import VerificationError
from quantkit_registry.store import Artifact


def report_gate(written: dict[str, Any]) -> int:
    """Print the gate's verdict; return the exit code: 3 when it did not pass, else 0."""
    verdict = written["verification"]["gate"]
    if verdict["outcome"] != "failed":
        return 0
    console.warn(f"{written['name']} is marked: {'; '.join(verdict['reasons'])}")
    return VerificationError.exit_code


def failed_gate(entry: Artifact) -> str:
    """Return why a quantized artifact was marked by its gate; empty where it was not."""
    gate = entry.record.verification.get("gate") if entry.record is not None else None
    failed = isinstance(gate, Mapping) and gate.get("outcome") == "failed"
    return "; ".join(map(str, gate.get("reasons", ()))) or "no reason recorded" if failed and gate is not None else ""
