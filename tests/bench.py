"""What the tests of models share: a batch, plans by name, one training step, and adapters that do something."""

from pathlib import Path
from typing import Any

from quantkit import AdapterPlan, PlanContext, QuantizationPlan
from quantkit.methods import installed_methods


def plan_for(method: str, kind: str = "LoRa", *, dtype: str = "float32", **options: Any) -> QuantizationPlan:
    """Return the plan of a method with a small adapter of this kind; `RsLoRa` stands for LoRA with rank-stabilized scale."""
    rank_stabilized = kind == "RsLoRa"
    adapter = AdapterPlan(kind="LoRa" if rank_stabilized else kind, r=4, lora_alpha=8, use_rslora=rank_stabilized)  # type: ignore[arg-type]
    return installed_methods().plan(method, options, PlanContext(adapter=adapter, compute_dtype=dtype, dense_dtype=dtype))


def load(folder: Path, plan: QuantizationPlan) -> Any:
    """Return the plan's base, loaded on the CPU."""
    from quantkit.modeling import load_base

    return load_base(str(folder), plan=plan, methods=installed_methods(), device="cpu")


def token_batch(seed: int = 0) -> Any:
    """Return token ids of shape [3, 24] for the tiny model."""
    import torch

    return torch.randint(3, 512, (3, 24), generator=torch.Generator().manual_seed(seed))


def logits(model: Any) -> Any:
    """Return the logits of the batch in eval mode, without gradients."""
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=token_batch()).logits.float()


def train_step(model: Any, learning_rate: float = 1e-2) -> list[str]:
    """Take one step of Adam and return the gradient faults it met."""
    import torch

    from quantkit.training.guards import gradient_faults

    model.train()
    parameters = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    model(input_ids=token_batch(), labels=token_batch()).loss.backward()
    faults = gradient_faults(model)
    optimizer.step()
    optimizer.zero_grad()
    return faults


def difference(one: Any, other: Any) -> float:
    """Return the largest absolute difference of two tensors."""
    return float((one - other).abs().max())
