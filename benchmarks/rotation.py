"""Do rotations help? QuaRot beside plain rounding, GPTQ and SmoothQuant, on weights with and without a grid of their own.

    python benchmarks/rotation.py [--quick] [--json FILE] [--model DIR] [--bits 4 3] [--data FILE --held-out FILE]

Each rotation is compared with the same rounding without it, on the same calibration and held-out rows, in one run: first a
model trained here in full precision, then the same one with outlier channels planted in it, then SmolLM2-135M, whose public
file once was 4-bit, as it is and with noise of half a 4-bit step on its weights, which breaks that grid. Judging rotations by
the third alone, as one would with any small public model, measures the loss of the grid. Activations are rounded per token
as compressed-tensors rounds them; 4-bit ones are computed in memory only, since no format carries them. `--quick` uses the
tests' model of 0.6 M parameters alone. Exit code 3 when a goal is missed.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import models
from full_precision import break_grid, model_folder, plant_outliers, rendered
from goals import Goal, add_flags, finish
from rotation_ways import SEED, Setting, Subject, compare


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from quantkit.console import use_stderr
    from quantkit.environment import describe_environment

    use_stderr()
    setting = Setting(bits=tuple(arguments.bits))
    if arguments.quick:
        setting = replace(setting, calib_rows=4, held_out_tokens=512)
    found = {
        subject.name: compare(subject, setting)
        for subject in subjects(setting, arguments.model, quick=arguments.quick, data=arguments.data, held=arguments.held_out)
    }
    for name, item in found.items():
        show(name, item)
    result = {"setting": asdict(setting), "environment": describe_environment("cpu"), "subjects": found}
    return finish("rotation", result, judge(found), arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own instead of SmolLM2-135M")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3], help="widths of weights (default 4 3)")
    parser.add_argument("--data", metavar="FILE", help="calibration text for --model (default: generated arithmetic)")
    parser.add_argument("--held-out", metavar="FILE", help="held-out text for --model")
    return parser.parse_args()


def subjects(
    setting: Setting, public: str | None, *, quick: bool, data: str | None = None, held: str | None = None
) -> list[Subject]:
    """Return the models to be judged; `public` is a folder to take instead of SmolLM2-135M."""
    own = str(model_folder(quick=quick))
    texts = documents(own, setting)
    listed = [
        Subject("trained in full precision", lambda: load(own), *texts),
        Subject("the same with planted outliers", lambda: plant_outliers(load(own)), *texts),
    ]
    if quick:
        return listed
    folder = models.model_folder(public, quick=False)
    texts = read_rows(folder, setting, data, held)
    name = Path(folder).name
    return [
        *listed,
        Subject(f"{name} as published", lambda: load(folder), *texts),
        Subject(f"{name}, grid broken by noise", lambda: break_grid(load(folder)), *texts),
    ]


def load(folder: str) -> Any:
    """Return a model in its own data type, ready to be judged."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def documents(folder: str, setting: Setting) -> tuple[Any, Any]:
    """Return calibration and held-out rows of generated arithmetic, each a conversation as the model was trained on them."""
    from quantkit.calibration import Calibration
    from quantkit.data.arithmetic import arithmetic_data
    from quantkit.modeling import load_tokenizer

    tokenizer = load_tokenizer(folder)
    data = arithmetic_data(train=setting.calib_rows * 8, held_out=setting.held_out_tokens // 32)
    rows, held_out = (
        tuple(tuple(tokenizer(text).input_ids) for text in rendered(tokenizer, part))
        for part in (data.train, data.unseen_numbers)
    )
    return Calibration(rows, "generated arithmetic"), held_out


def read_rows(folder: str, setting: Setting, data: str | None, held: str | None) -> tuple[Any, Any]:
    """Return calibration and held-out rows in a model's tokens, joined from files or from generated arithmetic."""
    from quantkit.calibrating import CalibrationSettings, read_texts
    from quantkit.data.arithmetic import arithmetic_data
    from quantkit.modeling import load_tokenizer
    from quantkit.skeleton import read_stop_tokens

    tokenizer = load_tokenizer(folder)
    wanted = CalibrationSettings(
        calib_rows=setting.calib_rows, calib_length=setting.calib_length, gate_tokens=setting.held_out_tokens, seed=SEED
    )
    stops = read_stop_tokens(folder, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            rows = arithmetic_data(train=800, held_out=240)
            for name, part in (("train", rows.train), ("held_out", rows.unseen_numbers)):
                Path(scratch, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
            data, held = str(Path(scratch, "train.jsonl")), str(Path(scratch, "held_out.jsonl"))
        texts = read_texts(data, tokenizer, wanted, gate_dataset=held, stop_token_ids=stops)
    return texts.calibration, texts.held_out.rows


def show(name: str, found: dict[str, Any]) -> None:
    """Print one model's table and what each rotation changed."""
    from quantkit.console import table

    dense, peaks = found["perplexity"], found["peak_of_inputs"]
    table(
        f"{name}: perplexity {_bounds(dense)} on {found['rows']} rows",
        ["weights and activations", "method", "perplexity", "mean KL", "quantize, s"],
        [
            [way["bits"], way["name"], _bounds(way["perplexity"]), _bounds(way["mean_kl"]), f"{way['quantize_s']:.1f}"]
            for way in sorted(found["ways"], key=lambda way: (way["bits"], way["mean_kl"]["value"]))
        ],
        caption=f"inputs of layers peak at {peaks['before']:.1f} times their size, {peaks['after']:.1f} rotated",
    )
    table(
        f"{name}: times the mean KL of what it is compared with",
        ["weights and activations", "method", "against", "mean KL", "verdict"],
        [
            [item["bits"], item["way"], item["against"], "×" + _bounds(item), item["verdict"]]
            for item in sorted(found["effects"], key=lambda item: (item["way"], item["against"], item["bits"]))
        ],
    )


def judge(found: dict[str, Any]) -> list[Goal]:
    """Compare what was found with what must hold: rotations cost nothing. What they gain is reported, not wished for."""
    goals = []
    for name, item in found.items():
        change = item["largest_change_by_rotation"]
        text = f"at most 1e-4 (float32 itself is {change['arithmetic']:.2g} from float64)"
        goals.append(Goal(f"{name}: max |Δlogit| of rotating, float32", change["float32"], text, change["float32"] <= 1e-4))
        exact = change["float32_weights"]
        goals.append(Goal(f"{name}: the same, computed in float64", exact, "at most 1e-4", exact <= 1e-4))
    return goals


def _bounds(found: dict[str, float]) -> str:
    return f"{found['value']:.4g} ({found['low']:.4g} to {found['high']:.4g})"


if __name__ == "__main__":
    sys.exit(main())
