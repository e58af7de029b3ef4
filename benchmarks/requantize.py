"""How much of what an adapter learnt is left when it is merged and the weights are quantized again?

    python benchmarks/requantize.py [--quick] [--json FILE] [--model DIR] [--adapter DIR] [--steps N] [--bases A,B]

Adapters are trained once, on the QLORA base (or read from a folder), put on every base listed, and folded in exactly. Each
result is measured three ways on held-out rows: dense, rounded to the nearest level of the base's grid, and requantized. The
gain is the loss of a base minus that of the adapter on it; what is asked is which share of it is left. Where training begins
with and without LoftQ's start is reported beside. Rows are the project's generated arithmetic; with `--quick`, on the tests'
model, which knows those, with answers turned round. Exit code 3 when a goal does not hold.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from goals import Goal, add_flags, finish
from models import model_folder
from requantize_cases import BASES, Setting, measure


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from quantkit.console import table, use_stderr

    use_stderr()
    setting = Setting(
        model=model_folder(arguments.model, quick=arguments.quick),
        adapter=arguments.adapter,
        steps=arguments.steps or (80 if arguments.quick else 50),
        learning_rate=1e-4 if arguments.quick else 1e-3,
        bases=tuple(arguments.bases.split(",")) if arguments.bases else tuple(BASES) if arguments.quick else ("QLORA",),
        turned=arguments.quick,
        calib_rows=arguments.calib_rows,
    )
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(setting, Path(scratch))
    kept = ("merged", "nearest", "requantized")
    table(
        f"Response loss on {found['held_out']} held-out rows, and the share of the gain that is left",
        ["base", "base", "adapter", *(f"{name}{part}" for name in kept for part in ("", " kept")), "seconds"],
        [
            [
                name,
                *(f"{item['loss'][key]:.4f}" for key in ("base", "adapter")),
                *(text for key in kept for text in (f"{item['loss'][key]:.4f}", _share(item, key))),
                f"{item['requantize_s']:.0f}",
            ]
            for name, item in found["bases"].items()
        ],
    )
    table(
        "Where training begins: response loss, and mean KL from the 16-bit model",
        ["base", "16 bit", "adapters add nothing", "KL", "LoftQ", "KL"],
        [
            [name, f"{start['16 bit']['loss']:.4f}"]
            + [text for key in ("default", "loftq") for text in (f"{start[key]['loss']:.4f}", f"{start[key]['mean_kl']:.3g}")]
            for name, start in ((name, item["start"]) for name, item in found["bases"].items())
        ],
    )
    said = asdict(setting) | {"model": Path(setting.model).name, "adapter": setting.adapter and Path(setting.adapter).name}
    return finish("requantize", {"setting": said} | found, judge(found), arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--adapter", metavar="DIR", help="a kept LoRA adapter for that model instead of training one")
    parser.add_argument("--steps", type=int, help="optimizer steps of 8 rows (default 50; quick 80)")
    parser.add_argument("--bases", metavar="A,B", help=f"which bases, of {', '.join(BASES)} (default QLORA; quick all)")
    parser.add_argument("--calib-rows", type=int, default=32, help="rows of 256 tokens that are rounded on (default 32)")
    return parser.parse_args()


def judge(found: dict[str, Any]) -> list[Goal]:
    """Compare what was found with what must hold."""
    goals = []
    for name, item in found["bases"].items():
        share = item["kept"]["requantized"]
        goals.append(Goal(f"{name}: gain kept by requantizing", round(share, 4), "at least 0.8", share >= 0.8))
        gap = share - item["kept"]["nearest"]
        goals.append(
            Goal(f"{name}: that minus what rounding to nearest keeps", round(gap, 4), "at least -0.002", gap >= -0.002)
        )
    return goals


def _share(item: dict[str, Any], name: str) -> str:
    return f"{item['kept'][name]:.1%}"


if __name__ == "__main__":
    sys.exit(main())
