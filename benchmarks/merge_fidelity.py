"""How far is each merged model from the adapter on the base it was trained on? One row for each method, adapter and merge.

Storage is told apart from arithmetic: 16-bit weights computed in float32 show what storing them in 16 bit costs, computed in
their own type what a user sees. Storing the merge in memory, rounded, costs the same as the streaming merge: the weights are
bit-equal, which is checked.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import AdapterPlan, PlanContext

CELLS = (
    ("QLORA", "LoRa"),
    ("BNB4BIT", "RsLoRa"),
    ("BNB4BIT", "DoRa"),
    ("BNB4BIT", "VeRa"),
    ("INT8", "LoRa"),
    ("NoQuant", "LoRa"),
    ("NoQuant", "DoRa"),
    ("NoQuant", "VeRa"),
)
SEED = 42
LEARNING_RATES = {"VeRa": 1e-2}
EXACT = "dequantized, float32"
STORED = "dequantized, bfloat16 stored"
FLOOR = "dequantized, noise of bfloat16 rounding"


def measure_cells(model: str, data: Any, tokenizer: Any, folder: Path, steps: dict[str, int]) -> list[dict[str, Any]]:
    """Train an adapter for each cell and compare every merge of it; `steps` by method, `*` for the others."""
    from quantkit.console import say

    found = []
    for method, kind in CELLS:
        taken = steps.get(method, steps["*"])
        say(f"{method} {kind}: {taken} steps ...")
        cell = Cell(
            base=model,
            plan=plan_of(method, kind),
            data=data,
            tokenizer=tokenizer,
            folder=folder / f"{method}-{kind}",
            steps=taken,
            learning_rate=LEARNING_RATES.get(kind, 1e-3),
        )
        found += measure_cell(cell, method, kind)
    return found


def plan_of(method: str, kind: str) -> Any:
    """Return the plan of a cell, computed in float32."""
    from quantkit.methods import installed_methods

    name: Any = "LoRa" if kind == "RsLoRa" else kind
    adapter = AdapterPlan(kind=name, r=64 if kind == "VeRa" else 16, lora_alpha=32, use_rslora=kind == "RsLoRa")
    return installed_methods().plan(method, {}, PlanContext(adapter=adapter, compute_dtype="float32", dense_dtype="bfloat16"))


@dataclass(frozen=True)
class Cell:
    """One adapter on one base: where they are, how it is trained, and on which rows merges are compared."""

    base: str
    plan: Any
    data: Any
    tokenizer: Any
    folder: Path
    steps: int
    learning_rate: float

    def logits(self, model: Any) -> Any:
        """Return a model's logits on the held-out rows."""
        from quantkit.fidelity import probe_logits

        return probe_logits(model, [row.input_ids for row in self.data.evaluation])


def measure_cell(cell: Cell, method: str, kind: str) -> list[dict[str, Any]]:
    """Return one row for each merge of one trained adapter."""
    from quantkit.fidelity import compare_logits

    reference = train_and_save(cell)
    found = []
    for name, logits in merged_logits(cell):
        item = {"merge": name, "problem": logits} if isinstance(logits, str) else {
            "merge": name, **compare_logits(reference, logits).to_dict()
        }  # fmt: skip
        found.append({"method": method, "adapter": kind, "steps": cell.steps, **item})
    return found


def train_and_save(cell: Cell) -> Any:
    """Train the cell's adapter, save it, and return the logits of the adapter on its base."""
    from quantkit.config import RunConfig
    from quantkit.methods import installed_methods
    from quantkit.modeling import attach_adapter, load_base
    from quantkit.training import train

    plan = cell.plan
    methods = installed_methods()
    config = RunConfig(
        model_name_or_path=cell.base,
        dataset_name="arithmetic",
        quant_method=plan.method,
        max_steps=cell.steps,
        learning_rate=cell.learning_rate,
        seed=SEED,
        device="cpu",
    )
    model = load_base(cell.base, plan=plan, methods=methods, device="cpu")
    model = attach_adapter(methods.prepare_model(plan, model), plan.adapter, SEED)
    train(model, cell.data, config, plan, tokenizer=cell.tokenizer, checkpoints=cell.folder / "checkpoints", device="cpu")
    model.save_pretrained(cell.folder / "adapter", save_embedding_layers=False)
    return cell.logits(model)


def merged_logits(cell: Cell) -> Any:
    """Yield name and logits of every merge; PEFT's merge into a quantized base beside ours."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantkit.merging import merge_streaming

    for policy, dtype in (("dequantized", "float32"), ("dequantized", "bfloat16"), ("base", "bfloat16")):
        out = cell.folder / f"{policy}-{dtype}"
        merge_streaming(
            cell.base,
            cell.folder / "adapter",
            out,
            fingerprint=None,
            recipe=cell.plan,
            policy=policy,
            dtype=dtype,
            progress=False,
        )
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        yield f"{policy}, {dtype}{' stored' if dtype == 'bfloat16' else ''}", cell.logits(model)
        if dtype == "float32":
            yield FLOOR, cell.logits(with_rounding_noise(model))
        if policy == "dequantized" and dtype == "bfloat16":
            yield f"{policy}, {dtype} stored and computed", cell.logits(model.bfloat16())
        del model
        gc.collect()
    if cell.plan.spec.is_quantized:
        yield "PEFT, into the quantized base", peft_logits(cell)


def with_rounding_noise(model: Any) -> Any:
    """Return the model with noise on its layers' weights as large as rounding to bfloat16 makes, but independent of the update.

    What storing in 16 bit must cost. Where the base itself was stored in bfloat16, rounding is not independent: it pulls small
    updates back to the base.
    """
    import torch

    chance = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            weight = module.weight.data
            spacing = torch.exp2(torch.floor(torch.log2(weight.abs().clamp_min(torch.finfo(torch.float32).tiny))) - 7)
            weight += (torch.rand(weight.shape, generator=chance) - 0.5) * spacing
    return model


def peft_logits(cell: Cell) -> Any:
    """Return the logits after PEFT's own merge into the loaded base, or what it raised."""
    from peft import PeftModel

    from quantkit.methods import installed_methods
    from quantkit.modeling import load_base

    model = load_base(cell.base, plan=cell.plan, methods=installed_methods(), device="cpu")
    try:
        return cell.logits(PeftModel.from_pretrained(model, cell.folder / "adapter").merge_and_unload())
    except Exception as error:  # whatever a peer raises is its result here
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
