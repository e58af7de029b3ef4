"""Artifacts with true records, on sample weights, written through the project's own door."""

from pathlib import Path
from typing import Any

from quantkit.files import new_folder
from quantkit.headers import read_stored_weights
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import ArtifactRecord, BaseReference, write_record
from tests.registry import samples

LORA = AdapterPlan(kind="LoRa", r=8)
QLORA = QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", format="bitsandbytes", double_quant=True)


def plan(spec: QuantizationSpec = QLORA, adapter: AdapterPlan = LORA) -> QuantizationPlan:
    """Return a plan at the base stage."""
    return QuantizationPlan(method=spec.method, stage=Stage.BASE, spec=spec, adapter=adapter, options={"threshold": 6.0})


def record(**changes: Any) -> ArtifactRecord:
    """Return the record of a kept QLORA adapter."""
    values: dict[str, Any] = {
        "name": "Base-d_SFT_LoRa8_QLORA_w4_headbf16",
        "kind": "adapter",
        "quantization": QLORA,
        "recipe": plan(),
        "adapter": LORA,
        "base": BaseReference(name_or_path="org/Base"),
    }
    return ArtifactRecord(**(values | changes))


def commit_adapter(root: Path, **changes: Any) -> Path:
    """Commit a kept QLORA adapter."""
    said = record(**changes)
    with new_folder(root / said.name) as folder:
        samples.adapter(folder, base=said.base.name_or_path)
        write_record(folder, said)
    return root / said.name


def commit_model(root: Path, *, dataset: str = "d", said: QuantizationSpec | None = None, **changes: Any) -> Path:
    """Commit a merged 16-bit model made by QLORA; `said` replaces what its record says of the weights."""
    name = ArtifactName.of(base="org/Base", dataset=dataset, adapter=LORA, recipe=QLORA, merged_dtype="bfloat16")
    with new_folder(root / format_name(name)) as folder:
        samples.dense(folder)
        stored = read_stored_weights(folder).to_spec("NoQuant")
        assert stored is not None
        write_record(folder, record(name=format_name(name), kind="model", quantization=said or stored, **changes))
    return root / format_name(name)
