"""How fast and how lean is a training step, beside TRL's SFTTrainer with its defaults and at its best?

    python benchmarks/training.py [--quick] [--json FILE] [--model DIR] [--data NAME|FILE] [--adapters attention|all-linear]
                                  [--steps N] [--rounds N] [--parts main ladder memory adapters whole]
                                  [--whole-steps N] [--peers trl | none]

QLORA on NF4 with double quantization, LoRA r = 16, batch 8, the same adapters to start from, the same rows in the same order.
Rows are generated: `arithmetic`, short answers, or `passages`, questions answered by passages, most of each row response.
TRL lives in an environment that is made once. Processor seconds are what is compared: the wall clock counts the neighbours too.
Parts: `main` against TRL, in turns; `ladder`, one lever more on every rung; `memory`, peaks on rows of full length; `adapters`,
DoRA and VeRA with PEFT's modules and ours; `whole`, do three whole runs end where TRL's do? The
bound is the time that the useful arithmetic takes at the rate of the model's largest matrix product, measured before and after.
`--quick` is quantkit alone, in one process, on the tests' model: it proves that this runs. Exit code 3 when a goal is lost.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from goals import add_flags, finish
from models import model_folder
from training_cases import WHOLE, Case, adapter_cases, ladder, main_cases, memory_cases, whole_cases
from training_judge import gradient_difference, judge, rates, useful_flops
from training_rows import GENERATED, facts, read_rows, whole_runs
from training_run import RANK, SEED, Setting, gradients_file, products, reference, run_cases

PARTS = ("main", "ladder", "memory", "adapters", "whole")


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from quantkit.console import use_stderr
    from quantkit.environment import describe_environment

    use_stderr()
    model = model_folder(arguments.model, quick=arguments.quick)
    rows = read_rows(
        model,
        arguments.data,
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        max_length=arguments.max_length,
        seed=SEED,
    )
    whole = "whole" in arguments.parts and arguments.peers == "trl"
    if whole:
        rows |= whole_runs(
            model,
            arguments.data,
            WHOLE,
            batch_size=arguments.batch_size,
            steps=arguments.whole_steps,
            max_length=arguments.max_length,
        )
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        setting = setting_of(arguments, model, rows, Path(scratch))
        base = reference(setting)
        found, gflops = measure(arguments, setting, base)
    measured = facts(rows["random"])
    share = sum(measured["response_tokens"]) / sum(measured["tokens"])
    result = {
        "setting": {
            name: value
            for name, value in vars(arguments).items()
            if name not in ("json", "scratch", "peer_envs", "model", "data")
        }
        | {
            "model": Path(model).name,
            "data": f"generated {arguments.data}" if arguments.data in GENERATED else Path(arguments.data).name,
            "lora_r": RANK,
        },
        "environment": describe_environment("cpu"),
        "rows": {name: facts(batches) for name, batches in rows.items()},
        "model": base,
        "gflops": gflops,
        "cases": found,
    }
    show(result)
    goals = judge(found, all_linear=arguments.adapters == "all-linear", response_share=share)
    return finish(
        "training", result, [goal for goal in goals if not arguments.quick or "gradients" in goal.name], arguments.json
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    from peers.environments import default_cache

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument(
        "--data",
        metavar="NAME|FILE",
        default=GENERATED[0],
        help=f"training rows: a file, or {' or '.join(GENERATED)}, which are generated (default {GENERATED[0]})",
    )
    parser.add_argument("--adapters", choices=("attention", "all-linear"), default="attention", help="layers with adapters")
    parser.add_argument("--steps", type=int, help="measured steps of a run, one more warms up (default 4)")
    parser.add_argument("--rounds", type=int, help="runs of each case, of which each step's median counts (default 3)")
    parser.add_argument("--whole-steps", type=int, default=50, help="steps of a whole run (default 50)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a step (default 8)")
    parser.add_argument("--max-length", type=int, help="longest row in tokens (default 512)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured (default all)")
    parser.add_argument("--peers", choices=("trl", "none"), help="by default trl, in the short form none")
    parser.add_argument("--peer-envs", metavar="DIR", type=Path, default=default_cache(), help="where TRL's environment lives")
    parser.add_argument("--scratch", metavar="DIR", help="where gradients are kept for as long as this runs")
    parser.add_argument("--limit-s", type=int, default=3600, help="seconds after which a run is given up")
    arguments = parser.parse_args()
    for name, short, full in (("steps", 2, 4), ("rounds", 1, 3), ("max_length", 128, 512), ("peers", "none", "trl")):
        if getattr(arguments, name) is None:
            setattr(arguments, name, short if arguments.quick else full)
    return arguments


def setting_of(arguments: argparse.Namespace, model: str, rows: dict[str, Any], scratch: Path) -> Setting:
    """Return what all runs share."""
    return Setting(
        model=str(Path(model).resolve()),
        rows=rows,
        adapted_layers=arguments.adapters,
        max_length=arguments.max_length,
        scratch=scratch,
        peer_envs=arguments.peer_envs,
        limit_s=arguments.limit_s,
        one_process=arguments.quick,
    )


def measure(
    arguments: argparse.Namespace, setting: Setting, base: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Return what each case took, and the rates of matrix products."""
    rows = {name: facts(batches) for name, batches in setting.rows.items()}
    tokens = sum(rows["random"]["tokens"]) // len(rows["random"]["tokens"])
    seconds = 0.05 if arguments.quick else 1.0
    gflops = [products(setting, base, tokens, seconds)]
    faster = max(("float32", "bfloat16"), key=lambda dtype: gflops[0][dtype])
    peers = arguments.peers == "trl"
    parts = {"main": main_cases(faster, peers=peers), "ladder": ladder(), "memory": memory_cases(faster, peers=peers)}
    parts["adapters"] = adapter_cases()
    cases: list[Case] = [case for part in PARTS if part in arguments.parts for case in parts.get(part, [])]
    found = run_cases(cases, setting, base["targets"], arguments.rounds)
    if WHOLE[0] in setting.rows:
        whole = whole_cases(faster)
        found |= run_cases(whole, setting, base["targets"], 1)
        cases += whole
    if not arguments.quick:  # the machine may have been busier before
        gflops.append(products(setting, base, tokens, seconds))
    best = {dtype: max(item[dtype] for item in gflops) for dtype in gflops[0]}
    for case in cases:
        if "error" in (item := found[case.name]):
            continue
        rates(item, rows[case.rows], useful_flops(base, rows[case.rows]), best)
        if (file := gradients_file(setting, case.name)).is_file():
            item["gradient_difference"] = gradient_difference(file, setting.scratch / "reference.safetensors")
    return found, best


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    from quantkit.console import format_bytes, say, table

    def line(name: str, item: dict[str, Any]) -> list[object]:
        if "error" in item:
            return [name, item["error"], *[None] * 7]
        apart = f"{item['gradient_difference']:.1e}" if "gradient_difference" in item else None
        numbers = (f"{item[key]:.1f}" for key in ("tokens_per_cpu_s", "tokens_per_s", "response_tokens_per_cpu_s"))
        return [
            name,
            *numbers,
            f"{item['share_of_bound']:.0%}",
            f"{item['share_of_own_bound']:.0%} ({item['arithmetic_dtype']})",
            format_bytes(item["peak_rss_bytes"]),
            f"{item['losses'][0]:.6f}",
            apart,
        ]

    columns = [
        "run",
        "tokens / CPU s",
        "tokens / s",
        "response tokens / CPU s",
        "of the bound",
        "of its type's",
        "peak",
        "first loss",
        "gradients",
    ]
    table("Training steps", columns, [line(name, item) for name, item in result["cases"].items()])
    rates_said = ", ".join(f"{dtype} {value:.0f}" for dtype, value in result["gflops"].items())
    say(f"matrix products, GFLOP per processor second: {rates_said}; first loss in float64: {result['model']['loss']:.6f}")


if __name__ == "__main__":
    sys.exit(main())
