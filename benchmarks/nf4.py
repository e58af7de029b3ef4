"""What does calibration do to a 4-bit base: to its perplexity, to where a QLORA run starts, and to where it ends?

    python benchmarks/nf4.py [--quick] [--json FILE] [--model DIR] [--steps N]

Each 4-bit grid is compared with itself, rounded to nearest and rounded with calibration, on the same model, rows, seed and
machine, in one run; the 16-bit model stands beside them. Rows are the project's generated arithmetic; calibration and
training rows are the same, held-out rows have other number pairs. `--quick` uses the tests' model of 0.6 M parameters.
Exit code 3 when a goal is missed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from goals import Goal, finish, interval

ROOT = Path(__file__).resolve().parent.parent
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


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from quantkit.console import table, use_stderr

    use_stderr()
    setting = Setting(
        model=arguments.model or model_folder(quick=arguments.quick),
        steps=arguments.steps,
        train_rows=400,
        held_out=60 if arguments.quick else 120,
        calib_rows=32,
        calib_length=128 if arguments.quick else 256,
        learning_rate=1e-3,
    )
    found = measure(setting)
    goals = judge(found, quick=arguments.quick)
    table(
        f"On {setting.held_out} held-out rows",
        ["base", "perplexity", "95 %", "mean KL", "response loss", "top-1", "load, s", "layers, MB"],
        [
            [
                name,
                *(f"{item['perplexity']:.4f}", f"{item['low']:.3f} to {item['high']:.3f}", f"{item['mean_kl']:.2g}"),
                f"{item['response_loss']:.4f}",
                *(f"{item['top1_agreement']:.1%}", f"{item['load_s']:.1f}", item["mb"]),
            ]
            for name, item in found["bases"].items()
        ],
    )
    table(
        f"QLORA, {setting.steps} steps of 8 rows: response loss in nats",
        ["base", "held out before", "held out after", "first step", "last step"],
        [
            [name, *(f"{run[key]:.4f}" for key in ("before", "after", "first_step", "last_step"))]
            for name, run in found["training"].items()
        ],
    )
    return finish("nf4", {"setting": asdict(setting) | {"model": Path(setting.model).name}} | found, goals, arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model of 0.6 M parameters instead of SmolLM2-135M")
    parser.add_argument("--json", metavar="FILE", help="write the results there instead of on stdout")
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each training run (default 20)")
    return parser.parse_args()


def model_folder(*, quick: bool) -> str:
    """Return the folder of the model, made or fetched if needed."""
    if quick:
        sys.path.insert(0, str(ROOT))
        from tests.tiny import tiny_model_folder

        return str(tiny_model_folder())
    from quantkit_tools.demo_model import real_model

    return str(real_model(ROOT / "demo" / "model"))


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
        pairs = [(two[0] - one[0], one[1]) for one, two in zip(plain, calibrated, strict=True)]
        found[key] = interval(pairs, lambda chosen: sum(a for a, _ in chosen) / sum(b for _, b in chosen), seed=SEED)
    return found


def share_closed(bases: dict[str, Any], grid: str) -> dict[str, float]:
    """Return which share of the loss that plain rounding adds calibration takes away, with a 95 % interval over rows."""
    columns = [bases[name]["losses"] for name in ("16 bit", grid, f"{grid}, calibrated")]

    def share(chosen: Sequence[tuple[float, ...]]) -> float:
        dense, plain, calibrated = (sum(column) for column in zip(*chosen, strict=True))
        return (plain - calibrated) / (plain - dense) if plain != dense else 0.0

    return interval(list(zip(*columns, strict=True)), share, seed=SEED)


def judge(found: dict[str, Any], *, quick: bool) -> list[Goal]:
    """Compare what was found with what must hold; a quick run is too small for goals about losses."""
    bases, goals = found["bases"], []
    for grid, item in found["closed"].items():
        plain, calibrated = bases[grid], bases[f"{grid}, calibrated"]
        text = f"{calibrated['mean_kl']:.3g} against {plain['mean_kl']:.3g}"
        goals.append(Goal(f"{grid}: mean KL from 16 bit", "at most half", text, 2 * calibrated["mean_kl"] <= plain["mean_kl"]))
        if not quick:
            text = f"{item['value']:.0%} ({item['low']:.0%} to {item['high']:.0%})"
            goals.append(Goal(f"{grid}: loss gap to 16 bit closed", "at least 50 %", text, item["value"] >= 0.5))
        text, same = f"{calibrated['mb']} and {plain['mb']} MB", abs(calibrated["mb"] / plain["mb"] - 1) <= 0.001
        goals.append(Goal(f"{grid}: size of the layers", "equal to 0.1 %", text, same))
    before, after = found["training_difference"]["before"], found["training_difference"]["after"]
    if not quick:
        goals.append(Goal("QLORA: loss where training starts", "lower", _signed(before), before["high"] < 0))
        goals.append(Goal("QLORA: loss where training ends", "not higher", _signed(after), after["low"] <= 0))
    return goals


def _signed(item: dict[str, float]) -> str:
    return f"{item['value']:+.4f} ({item['low']:+.4f} to {item['high']:+.4f})"


if __name__ == "__main__":
    sys.exit(main())
