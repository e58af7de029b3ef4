"""What does calibration do to a 4-bit base: to its perplexity, to where a QLORA run starts, and to where it ends?

    python benchmarks/nf4.py [--quick] [--json FILE] [--model DIR] [--steps N]

Each 4-bit grid is compared with itself, rounded to nearest and rounded with calibration, on the same model, rows, seed and
machine, in one run; the 16-bit model stands beside them. Rows are the project's generated arithmetic; calibration and
training rows are the same, held-out rows have other number pairs. `--quick` uses the tests' model of 0.6 M parameters.
Goals are about the base: perplexity, distributions and size. Where a QLORA run on it starts and ends is reported, with paired
intervals and a verdict in words. Exit code 3 when a goal does not hold.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from goals import Goal, add_flags, finish, signed
from models import model_folder
from nf4_bases import Setting, measure


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from quantkit.console import say, table, use_stderr

    use_stderr()
    setting = Setting(
        model=model_folder(arguments.model, quick=arguments.quick),
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
    for when, item in found["training_difference"].items():
        say(f"QLORA, response loss {when} training, calibrated against plain: {signed(item)}")
    return finish("nf4", {"setting": asdict(setting) | {"model": Path(setting.model).name}} | found, goals, arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each training run (default 20)")
    return parser.parse_args()


def judge(found: dict[str, Any], *, quick: bool) -> list[Goal]:
    """Compare what was found with what must hold; a quick run is too small for goals about losses.

    What calibration does to a run's first and last loss depends on rows and model, and is reported instead of promised.
    """
    bases, goals = found["bases"], []
    for grid, item in found["closed"].items():
        plain, calibrated = bases[grid], bases[f"{grid}, calibrated"]
        ratio = calibrated["mean_kl"] / plain["mean_kl"]
        goals.append(Goal(f"{grid}: mean KL, calibrated / plain", ratio, "at most 0.5", ratio <= 0.5))
        if not quick:
            share = item["value"]
            goals.append(Goal(f"{grid}: share of the loss gap to 16 bit closed", share, "at least 0.5", share >= 0.5))
        ratio = calibrated["mb"] / plain["mb"]
        goals.append(Goal(f"{grid}: size of the layers, calibrated / plain", ratio, "1 to 0.1 %", abs(ratio - 1) <= 0.001))
    return goals


if __name__ == "__main__":
    sys.exit(main())
