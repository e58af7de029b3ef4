"""What is left of an adapter on this base, merged and stored in each way? The measuring itself.

One adapter for all bases: training one on each would measure training, not merging. Rounding to nearest is the grid's own
range search without data, so what separates it from requantizing is the data alone.
"""

import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SEED = 42
PROBE_TOKENS = 1024
"""Positions whose distributions are compared with the 16-bit model's."""
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "QLORA": ("QLORA", {}),
    "NF4": ("BNB4BIT", {}),
    "FP4": ("BNB4BIT", {"quant_type": "fp4"}),
    "INT8": ("INT8", {}),
    "RTN": ("RTN", {"group_size": 64}),
    "HQQ": ("HQQ", {"group_size": 64}),
    "GPTQ": ("GPTQ", {"group_size": 64}),
    "AWQ": ("AWQ", {"group_size": 64}),
    "FP8": ("FP8", {}),
}
ORIGINAL: tuple[str, dict[str, Any]] = ("NoQuant", {})


@dataclass(frozen=True)
class Setting:
    """What is measured, and on how much."""

    model: str
    adapter: str | None
    steps: int
    learning_rate: float
    bases: tuple[str, ...]
    turned: bool
    """Whether answers name the result first, which the tests' model has not learnt."""
    calib_rows: int
    calib_length: int = 256
    train_rows: int = 400
    held_out: int = 60


def measure(setting: Setting, scratch: Path) -> dict[str, Any]:
    """Train or read the adapter, then put it on every base."""
    from quantkit.calibrating import CalibrationSettings, split_texts
    from quantkit.console import say
    from quantkit.data import prepare_data
    from quantkit.environment import describe_environment
    from quantkit.modeling import load_tokenizer
    from quantkit.skeleton import read_stop_tokens

    tokenizer = load_tokenizer(setting.model)
    train, held_out = write_rows(scratch, setting)
    data = prepare_data(
        dataset=f"openmath:{train}" if not setting.turned else str(train),
        eval_dataset=f"openmath:{held_out}" if not setting.turned else str(held_out),
        tokenizer=tokenizer,
        max_length=256,
        stop_token_ids=read_stop_tokens(setting.model, tokenizer),
    )
    wanted = CalibrationSettings(
        calib_rows=setting.calib_rows, calib_length=setting.calib_length, calib_min_tokens=256, seed=SEED
    )
    calibration = split_texts(data, wanted, source="the training rows").calibration
    adapter = setting.adapter or train_adapter(setting, data, tokenizer, scratch)
    bases = {}
    for name in setting.bases:
        say(f"{name} ...")
        bases[name] = one_base(setting, name, adapter, data.evaluation, calibration)
        bases[name]["start"] = starts(setting, name, data.evaluation, calibration)
    return {
        "held_out": len(data.evaluation),
        "calibration": calibration.to_dict() if calibration else {},
        "environment": describe_environment("cpu"),
        "bases": bases,
    }


def write_rows(folder: Path, setting: Setting) -> tuple[Path, Path]:
    """Write training and held-out rows as JSONL; return both files."""
    from quantkit.data.arithmetic import arithmetic_data

    data = arithmetic_data(train=setting.train_rows, held_out=setting.held_out, largest=20)
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, rows in zip(files, (data.train, data.unseen_numbers), strict=True):
        chosen = [turn(row) for row in rows] if setting.turned else rows
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return files


def turn(row: dict[str, str]) -> dict[str, str]:
    """Return a row whose answer names the result first: `12 because 5+7`."""
    said, result = row["answer"].split(" ")[0].split("=")
    return row | {"answer": f"{result} because {said}"}


def plan_of(name: str) -> Any:
    """Return the plan of a base in float32 arithmetic."""
    from quantkit import AdapterPlan, PlanContext
    from quantkit.methods import installed_methods

    method, options = ORIGINAL if name == "NoQuant" else BASES[name]
    context = PlanContext(adapter=AdapterPlan(r=16, lora_alpha=32), compute_dtype="float32", dense_dtype="float32")
    return installed_methods().plan(method, options, context)


def load(setting: Setting, name: str, calibration: Any) -> Any:
    """Return a base in memory, ready to carry adapters."""
    from quantkit.methods import installed_methods
    from quantkit.modeling import load_base

    methods, plan = installed_methods(), plan_of(name)
    text = calibration if methods.wants_calibration(plan) else None
    return methods.prepare_model(plan, load_base(setting.model, plan=plan, methods=methods, device="cpu", calibration=text))


def train_adapter(setting: Setting, data: Any, tokenizer: Any, scratch: Path) -> str:
    """Train LoRA on the QLORA base and return the folder it is saved in."""
    from quantkit.config import RunConfig
    from quantkit.modeling import attach_adapter
    from quantkit.training import train

    plan = plan_of("QLORA")
    config = RunConfig(
        model_name_or_path=setting.model,
        dataset_name="arithmetic",
        quant_method=plan.method,
        max_steps=setting.steps,
        learning_rate=setting.learning_rate,
        lr_scheduler_type="cosine",
        compute_dtype="float32",
        seed=SEED,
        device="cpu",
    )
    model = attach_adapter(load(setting, "QLORA", None), plan.adapter, SEED)
    train(model, data, config, plan, tokenizer=tokenizer, checkpoints=scratch / "checkpoints", device="cpu")
    model.save_pretrained(scratch / "adapter")
    return str(scratch / "adapter")


def one_base(setting: Setting, name: str, adapter: str, rows: list[Any], calibration: Any) -> dict[str, Any]:
    """Return the losses of a base, of the adapter on it, and of its merge in every form."""
    from peft import PeftModel

    from quantkit.merging.requantize import requantize
    from quantkit.methods import installed_methods

    methods, plan = installed_methods(), plan_of(name)
    model = load(setting, name, calibration)
    loss = {"base": response_loss(model, rows)}
    model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=True)
    loss["adapter"] = response_loss(model, rows)
    merged = methods.post_train_merge(plan, model)
    loss["merged"] = response_loss(merged, rows)
    loss["nearest"] = response_loss(nearest(copy.deepcopy(merged), name), rows)
    started = time.perf_counter()
    model = requantize(merged, plan, methods, calibration)
    seconds = time.perf_counter() - started
    loss["requantized"] = response_loss(model, rows)
    gain = loss["base"] - loss["adapter"]
    kept = {key: (loss["base"] - loss[key]) / gain for key in ("merged", "nearest", "requantized")}
    return {"loss": loss, "kept": kept, "requantize_s": seconds}


def starts(setting: Setting, name: str, rows: list[Any], calibration: Any) -> dict[str, dict[str, float]]:
    """Return where training on a base begins, with adapters that add nothing and with LoftQ's: loss, and KL from 16 bit."""
    from quantkit.fidelity import compare_logits, probe_logits
    from quantkit.modeling import attach_adapter
    from quantkit.starts import start_from_residual

    ids = [row.input_ids for row in rows]
    original = load(setting, "NoQuant", None)
    found = {"16 bit": {"loss": response_loss(original, rows), "mean_kl": 0.0}}
    reference = probe_logits(original, ids, tokens=PROBE_TOKENS)
    del original
    adapter = replace(plan_of(name).adapter, init_lora_weights="loftq")
    model = attach_adapter(load(setting, name, calibration), adapter, SEED)
    for start in ("default", "loftq"):
        if start == "loftq":
            start_from_residual(model, setting.model)
        fidelity = compare_logits(reference, probe_logits(model, ids, tokens=PROBE_TOKENS))
        found[start] = {"loss": response_loss(model, rows), "mean_kl": fidelity.mean_kl}
    return found


def nearest(model: Any, name: str) -> Any:
    """Round every linear layer of a dense model, in place, to the nearest level of the base's grid."""
    import torch

    from quantkit.layers import linear_layers
    from quantkit.merging.requantize_grids import stored_grid
    from quantkit.numerics.codebooks import CodebookGrid, quantize_codebook
    from quantkit.numerics.float8 import Float8Grid, quantize_float8
    from quantkit.numerics.grids import quantize

    plan = plan_of(name)
    stored = stored_grid(plan, torch.float32)
    if stored is None:
        raise ValueError(f"the grid of {name} is not known")
    for layer in linear_layers(model).values():
        weight = layer.weight.data
        if isinstance(stored.grid, CodebookGrid):
            grid = CodebookGrid(stored.grid.name, dtype=torch.float32)
            found = quantize_codebook(weight, grid)
            layer.weight.data = (found.nest() if plan.spec.double_quant else found).dequantize()
        elif isinstance(stored.grid, Float8Grid):
            layer.weight.data = quantize_float8(weight, torch.float32).dequantize()
        else:
            layer.weight.data = quantize(weight, stored.grid).dequantize()
    return model


def response_loss(model: Any, rows: list[Any]) -> float:
    """Return the mean loss in nats per response token."""
    from quantkit.evaluation.perplexity import row_losses

    losses = row_losses(model, rows, batch_size=20)
    return sum(item.response_nll for item in losses) / sum(item.response_tokens for item in losses)
