"""Small runs on the tiny model."""

from pathlib import Path
from typing import Any

import torch

from quantkit.adapters import attach_adapter
from quantkit.config import RunConfig
from quantkit.data import EncodedRow, PreparedData
from quantkit.data.arithmetic import arithmetic_data
from quantkit.plan import AdapterPlan, PeftKind, QuantizationPlan, Stage
from quantkit.spec import QuantizationSpec
from quantkit.training import TrainingResult, train


def reversed_arithmetic(tokenizer: Any) -> PreparedData:
    """Return 24 rows of a task the tiny model does not know (answers are written backwards) and 8 held-out ones."""
    rows = []
    for number, row in enumerate(arithmetic_data(train=32, seed=5).train, start=1):
        prompt = [{"role": "user", "content": row["question"]}]
        before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        response = tokenizer(row["answer"][::-1] + "<|im_end|>")["input_ids"]
        rows.append(EncodedRow(before + response, [-100] * len(before) + response, number))
    return PreparedData("arithmetic", rows[:24], rows[24:], "fingerprint", None)  # type: ignore[arg-type]


def config(**changes: Any) -> RunConfig:
    """Return settings of six steps of four rows in float32 that keep the adapter."""
    settings: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 5e-3}
    settings["merge_after_train"] = False  # else the last step is kept as a checkpoint, to fold in from
    return RunConfig(**({"model_name_or_path": "tiny", "compute_dtype": "float32"} | settings | changes))


def adapted(folder: Path, kind: PeftKind = "LoRa", dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Any:
    """Return the tiny model with adapters of rank 4."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return attach_adapter(model, AdapterPlan(kind=kind, r=4, lora_alpha=8, lora_dropout=dropout), seed=1)


def run(model: Any, data: PreparedData, settings: RunConfig, tokenizer: Any, folder: Path, **plan: Any) -> TrainingResult:
    """Train on the CPU; keyword arguments are fields of the plan."""
    spec = QuantizationSpec.dense("bfloat16")
    made = QuantizationPlan(method="NoQuant", stage=Stage.BASE, spec=spec, adapter=AdapterPlan(), **plan)
    return train(model, data, settings, made, tokenizer=tokenizer, checkpoints=folder, device="cpu")


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the trainable parameters."""
    return {name: item.detach().clone() for name, item in model.named_parameters() if item.requires_grad}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are bit-identical."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
