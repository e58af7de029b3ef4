"""What does another project's metadata claim about a folder?

The study whose ideas quantkit builds on wrote `training_metadata.json` and `quantization_metadata.json` without a schema
version. They are read as claims, to be compared with the tensors: its 4-bit artifacts were labelled `NoQuant`, and its
results table was made with that label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.headers import StoredWeights, read_object
from quantkit_registry.records import RECORD_FILE

STUDY_FILES = ("training_metadata.json", RECORD_FILE)
COMPARED = ("weights_bits", "group_size", "symmetric", "activations_bits")
FORMATS = ("bitsandbytes", "gptq", "awq", "hqq", "compressed-tensors", "torchao")
"""Words of its `backend` field that are storage formats."""
UNQUANTIZED = "noquant"


@dataclass(frozen=True, slots=True)
class Claim:
    """What one metadata file says, in its `quantization` object."""

    file: str
    method: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        bits = self.values.get("weights_bits")
        return f"says method {self.method}" + (f", {bits} bits" if isinstance(bits, int) else "")

    def contradictions(self, stored: StoredWeights) -> list[str]:
        """Return each claim that the stored weights do not bear out."""
        found = []
        says_dense = self.method.lower() == UNQUANTIZED
        if says_dense == stored.is_quantized:
            found.append(f"method {self.method!r} (the tensors are {stored.describe()})")
        for name in COMPARED:
            said, here = self.values.get(name), getattr(stored, name)
            if isinstance(said, int) and here is not None and said != here:
                found.append(f"{name} {said!r} (the tensors say {here!r})")
        backend = self.values.get("backend")
        if isinstance(backend, str) and backend.lower() in FORMATS and stored.is_quantized and backend.lower() != stored.format:
            found.append(f"backend {backend!r} (the tensors are {stored.describe()})")
        return found


def read_claim(folder: Path) -> Claim | None:
    """Return the claim of the first metadata file that makes one; None where there is none.

    Raises:
        UsageError: a metadata file is damaged.
    """
    for name in STUDY_FILES:
        path = folder / name
        if not path.is_file():
            continue
        data = read_object(path)
        if is_ours(data):
            continue
        values = data.get("quantization")
        method = values.get("method") if isinstance(values, Mapping) else None
        if isinstance(values, Mapping) and isinstance(method, str) and 0 < len(method) <= 64:
            return Claim(name, method, values)
    return None


def is_ours(data: Mapping[str, Any]) -> bool:
    """Whether JSON data is a quantkit record, of whatever version."""
    return "schema_version" in data or "quantkit_version" in data
