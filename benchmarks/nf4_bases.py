"""How good are 4-bit bases with and without calibration, and what becomes of QLORA runs on them? The measuring itself.

Every base is loaded as a run loads it, scored on the held-out rows, and two are trained on. Scoring saved folders would
measure the file format too, which `quantize.py` does.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goals import interval, paired

SEED = 42
GRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "NF4 + double quantization (QLORA)": ("QLORA", {}),
    "NF4": ("BNB4BIT", {}),
    "FP4": ("BNB4BIT", {"quant_type": "fp4"}),
}
TRAINED = "NF4 + double quantization (QLORA)"
KL_ROWS = 32
"""Rows on which whole distributions are compared."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and on how much."""

    model: str
    steps: int
    train_rows: int
    held_out: int
    calib_rows: int
    calib_length: int
    learning_rate: float


def measure(setting: Setting) -> dict[str, Any]:
    """Load every base, score it on the held-out rows, and train on two of them."""
    from quantkit.calibrating import CalibrationSettings, split_texts
    from quantkit.console import say
    from quantkit.data import prepare_data
    from quantkit.environment import describe_environment
    from quantkit.modeling import load_tokenizer
    from quantkit.skeleton import read_stop_tokens

    tokenizer = load_tokenizer(setting.model)
    with tempfile.TemporaryDirectory() as scratch:
        train, held_out = write_rows(Path(scratch), setting)
        data = prepare_data(
            dataset=str(train),
            eval_dataset=str(held_out),
            tokenizer=tokenizer,
            max_length=256,
            stop_token_ids=read_stop_tokens(setting.model, tokenizer),
        )
        wanted = CalibrationSettings(calib_rows=setting.calib_rows, calib_length=setting.calib_length, seed=SEED)
        calibration = split_texts(data, wanted, source="the training rows").calibration
        bases: dict[str, Any] = {}
        training: dict[str, Any] = {}
        source = None
        for name, method, options in variants():
            say(f"{name} ...")
            model, item = load(setting, method, options, calibration)
            scores, behaviour = score(model, tokenizer, data.evaluation, source)
            source = source or behaviour
            bases[name] = item | scores
            if name.startswith(TRAINED):
                plan, folder = plan_of(method, options), Path(scratch) / name
                training[name] = train_on(model, setting, plan, data=data, tokenizer=tokenizer, folder=folder)
            del model
    found = {
        "calibration": calibration.to_dict() if calibration else {},
        "environment": describe_environment("cpu"),
        "bases": bases,
        "closed": {grid: share_closed(bases, grid) for grid in GRIDS},
        "training": training,
        "training_difference": differences(training),
    }
    for item in bases.values():
        del item["losses"]
    for run in training.values():
        run |= {key: sum(a for a, _ in run[key]) / sum(b for _, b in run[key]) for key in ("before", "after")}
    return found


def variants() -> list[tuple[str, str, dict[str, Any]]]:
    """Return name, method and options of every base, in the order they are measured."""
    listed: list[tuple[str, str, dict[str, Any]]] = [("16 bit", "NoQuant", {})]
    for grid, (method, options) in GRIDS.items():
        listed += [(grid, method, options), (f"{grid}, calibrated", method, options | {"calibrated": True})]
    return listed


def write_rows(folder: Path, setting: Setting) -> tuple[Path, Path]:
    """Write training and held-out rows as JSONL; return both files."""
    from quantkit.data.arithmetic import arithmetic_data

    data = arithmetic_data(train=setting.train_rows, held_out=setting.held_out, largest=20)
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, rows in zip(files, (data.train, data.unseen_numbers), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def plan_of(method: str, options: dict[str, Any]) -> Any:
    """Return the plan of a base that LoRA adapters are trained on."""
    from quantkit import AdapterPlan, PlanContext
    from quantkit.methods import installed_methods
    from quantkit.modeling import resolve_compute_dtype

    context = PlanContext(adapter=AdapterPlan(r=16, lora_alpha=32), compute_dtype=resolve_compute_dtype("auto", "cpu"))
    return installed_methods().plan(method, options, context)


def load(setting: Setting, method: str, options: dict[str, Any], calibration: Any) -> tuple[Any, dict[str, Any]]:
    """Return a base in memory, with the seconds that took and the megabytes of its tensors."""
    from quantkit.methods import installed_methods
    from quantkit.modeling import load_base

    started = time.perf_counter()
    model = load_base(
        setting.model,
        plan=plan_of(method, options),
        methods=installed_methods(),
        device="cpu",
        calibration=calibration if options.get("calibrated") else None,
    )
    seconds = time.perf_counter() - started
    tensors = {tensor.data_ptr(): tensor for name, tensor in model.state_dict().items() if "layers." in name}
    size = sum(tensor.nbytes for tensor in tensors.values())
    return model, {"load_s": seconds, "mb": round(size / 1e6, 3)}


def score(model: Any, tokenizer: Any, rows: list[Any], source: Any) -> tuple[dict[str, Any], Any]:
    """Return what is measured on held-out rows, and the model's behaviour there, which `source` is for the 16-bit model."""
    from quantkit.evaluation.perplexity import perplexity_score, row_losses
    from quantkit.gate import GateText, compare, observe

    losses = row_losses(model, rows, batch_size=16)
    found = perplexity_score(losses, rows, over="all", vocabulary=model.config.vocab_size, seed=SEED)
    text = GateText(tuple(tuple(row.input_ids) for row in rows[:KL_ROWS]), (), "held-out rows")
    behaviour = observe(model, tokenizer, text)
    against = compare(source or behaviour, behaviour, text)
    item = {"perplexity": found.value, "low": found.low, "high": found.high}
    item |= {"mean_kl": against.mean_kl, "top1_agreement": against.top1_agreement}
    item["response_loss"] = sum(loss.response_nll for loss in losses) / sum(loss.response_tokens for loss in losses)
    return item | {"losses": [loss.all_nll for loss in losses]}, behaviour


def response_losses(model: Any, rows: list[Any]) -> list[tuple[float, int]]:
    """Return each row's summed loss over response tokens, and how many there are."""
    from quantkit.evaluation.perplexity import row_losses

    return [(loss.response_nll, loss.response_tokens) for loss in row_losses(model, rows, batch_size=16)]


def train_on(model: Any, setting: Setting, plan: Any, *, data: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Train adapters on a base; return losses before, on the way and after."""
    from quantkit.config import RunConfig
    from quantkit.methods import installed_methods
    from quantkit.modeling import attach_adapter
    from quantkit.training import train

    config = RunConfig(
        model_name_or_path=setting.model,
        dataset_name="arithmetic",
        quant_method=plan.method,
        max_steps=setting.steps,
        learning_rate=setting.learning_rate,
        lr_scheduler_type="cosine",
        seed=SEED,
        device="cpu",
    )
    before = response_losses(model, data.evaluation)
    model = attach_adapter(installed_methods().prepare_model(plan, model), plan.adapter, SEED)
    result = train(model, data, config, plan, tokenizer=tokenizer, checkpoints=folder, device="cpu")
    after = response_losses(model, data.evaluation)
    return {"first_step": result.losses[0], "last_step": result.losses[-1], "before": before, "after": after}


def differences(training: dict[str, Any]) -> dict[str, Any]:
    """Return by how much calibration changes the held-out response loss, before and after training, with 95 % intervals."""
    found = {}
    for key in ("before", "after"):
        plain, calibrated = (training[name][key] for name in (TRAINED, f"{TRAINED}, calibrated"))
        found[key] = paired(calibrated, plain, seed=SEED)
    return found


def share_closed(bases: dict[str, Any], grid: str) -> dict[str, float]:
    """Return which share of the loss that plain rounding adds calibration takes away, with a 95 % interval over rows."""
    columns = [bases[name]["losses"] for name in ("16 bit", grid, f"{grid}, calibrated")]

    def share(chosen: Sequence[tuple[float, ...]]) -> float:
        dense, plain, calibrated = (sum(column) for column in zip(*chosen, strict=True))
        return (plain - calibrated) / (plain - dense) if plain != dense else 0.0

    return interval(list(zip(*columns, strict=True)), share, seed=SEED)
