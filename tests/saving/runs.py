"""Plans and records of artifacts to save, in full precision so that logits can be compared bit for bit."""

from pathlib import Path
from typing import Any

import torch

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, QuantizationSpec
from quantkit.methods import installed_methods

METHODS = installed_methods()
ROWS = torch.tensor([[1, 75, 80, 85, 90, 2]])


def plan_of(method: str, kind: Any = "NoPeft", **options: Any) -> QuantizationPlan:
    adapter = AdapterPlan(kind=kind, r=4, lora_alpha=8, target_modules=("q_proj", "down_proj"))
    return METHODS.plan(method, options, PlanContext(adapter=adapter, compute_dtype="float32", dense_dtype="float32"))


def record_of(plan: QuantizationPlan, base: Path, kind: str = "model", spec: QuantizationSpec | None = None) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "quantkit_version": "0.1.0",
        "name": "Tiny-Llama-demo_SFT_LoRa4_QLORA_w4_headfp32",
        "kind": kind,
        "created_at": "2026-01-01T00:00:00+00:00",
        "quantization": (spec or plan.spec).to_dict(),
        "recipe": plan.to_dict(),
        "adapter": plan.adapter.to_dict(),
        "merge": None,
        "base": {"name_or_path": str(base), "revision": None, "fingerprint": None},
        "parents": [],
        "training": {},
        "data": {},
        "memory": {},
        "environment": {},
        "verification": {},
    }


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ROWS).logits.float()
