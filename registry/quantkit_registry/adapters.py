"""What does an adapter folder say of itself, and do its configuration, tensors and record agree?

`adapter_config.json` records no quantization at all, so a foreign adapter's recipe is unknown unless its base is a
quantized checkpoint; our own carry the plan they were trained with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.headers import TensorIndex, read_object, read_tensor_index
from quantkit_registry.records import ArtifactRecord

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_STEM = "adapter_model"


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """The facts of a PEFT adapter's folder."""

    kind: str
    """`LoRa`, `DoRa`, `VeRa`, or PEFT's own `peft_type` where it is none of these."""
    rank: int | None
    use_rslora: bool
    base: str | None
    revision: str | None
    tensors: int

    def describe(self) -> str:
        """Return a short phrase, e.g. `LoRa of rank 16 in 56 tensors`."""
        scaling = "rank-stabilised " if self.use_rslora else ""
        return f"{scaling}{self.kind} of rank {self.rank} in {self.tensors} tensors"

    def contradictions(self, record: ArtifactRecord) -> list[str]:
        """Return each fact in which a record differs from the adapter's own files."""
        plan = record.adapter
        if record.kind != "adapter" or plan is None:
            return [f"kind {record.kind!r} (the folder holds an adapter)"]
        found = []
        for name, said, here in (
            ("adapter.kind", plan.kind, self.kind),
            ("adapter.r", plan.r, self.rank),
            ("adapter.use_rslora", plan.use_rslora, self.use_rslora),
            ("base.name_or_path", record.base.name_or_path, self.base),
        ):
            if here is not None and said != here:
                found.append(f"{name} {said!r} ({ADAPTER_CONFIG} and tensors say {here!r})")
        return found


def read_adapter(folder: Path) -> StoredAdapter:
    """Return what an adapter folder holds.

    Raises:
        UsageError: a file is missing or damaged, the weights are pickled, or rank and tensors contradict each other.
    """
    path = folder / ADAPTER_CONFIG
    config = read_object(path)
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or not 0 < len(peft_type) <= 64:
        raise UsageError(f"{path}: peft_type is {str(peft_type)[:40]!r}; a PEFT adapter names its type there")
    rank = config.get("r")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise UsageError(f"{path}: r is {str(rank)[:40]!r}; a rank is a positive number")
    index = read_tensor_index(folder, stem=ADAPTER_STEM)
    if not index.tensors:
        raise UsageError(f"{folder}: the adapter holds no tensors")
    if peft_type.upper() == "LORA" and not config.get("rank_pattern"):
        _require_rank(folder, index, rank)
    return StoredAdapter(
        kind=_kind(peft_type, config),
        rank=rank,
        use_rslora=config.get("use_rslora") is True,
        base=_text(path, config, "base_model_name_or_path"),
        revision=_text(path, config, "revision"),
        tensors=len(index.tensors),
    )


def _require_rank(folder: Path, index: TensorIndex, rank: int | None) -> None:
    for name, tensor in index.tensors.items():
        if name.endswith("lora_A.weight") and tensor.shape and tensor.shape[0] != rank:
            raise UsageError(f"{folder}: {ADAPTER_CONFIG} says rank {rank}, but {name} has {tensor.shape[0]} rows")


def _kind(peft_type: str, config: dict[str, Any]) -> str:
    if peft_type.upper() == "LORA":
        return "DoRa" if config.get("use_dora") is True else "LoRa"
    return "VeRa" if peft_type.upper() == "VERA" else peft_type


def _text(path: Path, config: dict[str, Any], key: str) -> str | None:
    value = config.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
        raise UsageError(f"{path}: {key} is {str(value)[:40]!r}; a hub id or path is wanted")
    return value
