"""What does merging an adapter take, and is the result the model that was trained? Beside PEFT on the same jobs.

    python benchmarks/merge.py [--quick] [--json FILE] [--model DIR] [--steps N] [--repeat N]

Time and peak memory: the streaming merge against `merge_and_unload` + `save_pretrained`, each in a process of its own, time
without imports, the fastest of `--repeat` runs. Memory is the whole process where the model is large (a synthetic checkpoint
of 2 GB, written without ever being a model), and what comes on top of the imported libraries where it is small: there they
weigh more than the model. Fidelity: adapters trained a few steps on generated arithmetic; every merge against the adapter on
the base it was trained on, in float32, on held-out rows. Exit code 3 when a goal is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from goals import Goal, add_flags, finish
from merge_checkpoint import write_adapter, write_checkpoint
from merge_fidelity import CELLS, EXACT, FLOOR, STORED, measure_cells
from models import model_folder

JOBS = ("16 bit", "NF4, into NF4", "NF4, dequantized")
TOOLS = ("PEFT", "quantkit")


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    from quantkit.console import use_stderr
    from quantkit.environment import describe_environment

    use_stderr()
    model = model_folder(arguments.model, quick=arguments.quick)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        cells = fidelity(model, folder, arguments)
        small = costs(model, folder / "QLORA-LoRa" / "adapter", folder, JOBS, arguments.repeat)
        sizes = (1, 2) if arguments.quick else (5, 20)
        large = {layers: synthetic(folder, layers, arguments.repeat) for layers in sizes}
    found = {
        "setting": {"model": Path(model).name, "steps": arguments.steps, "repeat": arguments.repeat},
        "environment": describe_environment("cpu"),
        "small": small,
        "synthetic": large,
        "fidelity": cells,
    }
    show(found)
    return finish("merge", found, judge(found, quick=arguments.quick), arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--steps", type=int, default=20, help="steps of the QLORA adapter (default 20); others take a fifth")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each merge, of which the fastest counts (default 2)")
    parser.add_argument("--scratch", metavar="DIR", help="where models are written and removed again; takes 12 GB")
    return parser.parse_args()


def fidelity(model: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and merge every cell."""
    from quantkit.data import prepare_data
    from quantkit.data.arithmetic import arithmetic_data
    from quantkit.modeling import load_tokenizer
    from quantkit.skeleton import read_stop_tokens

    tokenizer = load_tokenizer(model)
    rows = arithmetic_data(train=400, held_out=40, largest=20)
    files = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, part in zip(files, (rows.train, rows.unseen_numbers), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    data = prepare_data(
        dataset=str(files[0]),
        eval_dataset=str(files[1]),
        tokenizer=tokenizer,
        max_length=256,
        stop_token_ids=read_stop_tokens(model, tokenizer),
    )
    steps = {"QLORA": arguments.steps, "*": max(2, arguments.steps // 5)}
    return measure_cells(model, data, tokenizer, folder, steps)


def costs(model: str, adapter: Path, folder: Path, jobs: tuple[str, ...], repeat: int) -> dict[str, Any]:
    """Return job and tool to what the fastest run took; tools take turns, so that both meet the same machine."""
    from quantkit.console import say

    found: dict[str, Any] = {job: {} for job in jobs}
    for job in jobs:
        for _ in range(repeat):
            for tool in TOOLS:
                say(f"{Path(model).name}, {job}: {tool} ...")
                taken = in_a_process(tool=tool, base=model, adapter=str(adapter), out=str(folder / f"{tool} out"), kind=job)
                best = found[job].setdefault(tool, taken)
                peaks = {key: max(best[key], taken[key]) for key in ("peak_bytes", "above_imports_bytes")}
                found[job][tool] = min(best, taken, key=lambda item: item["seconds"]) | peaks
        mine, theirs = found[job]["quantkit"], found[job]["PEFT"]
        found[job]["times_faster"] = theirs["seconds"] / mine["seconds"]
        found[job]["share_of_peak"] = mine["peak_bytes"] / theirs["peak_bytes"]
        found[job]["share_of_peak_above_imports"] = mine["above_imports_bytes"] / theirs["above_imports_bytes"]
    return found


def in_a_process(**job: str) -> dict[str, float]:
    """Run one merge in a process of its own."""
    worker = Path(__file__).with_name("merge_worker.py")
    done = subprocess.run([sys.executable, str(worker), json.dumps(job)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job['tool']}, {job['kind']}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def synthetic(folder: Path, layers: int, repeat: int) -> dict[str, Any]:
    """Return what merging into a synthetic checkpoint takes."""
    base, adapter = folder / f"synthetic-{layers}", folder / f"synthetic-{layers}-adapter"
    size = write_checkpoint(base, layers)
    write_adapter(adapter, layers)
    return {"bytes": size, **costs(str(base), adapter, folder, ("16 bit",), repeat)["16 bit"]}


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    from quantkit.console import format_bytes, table

    taken = dict(found["small"])
    taken |= {f"synthetic, {format_bytes(item['bytes'])}, 16 bit": item for item in found["synthetic"].values()}
    table(
        "What a merge takes",
        ["job", "tool", "seconds", "processor s", "peak", "above imports"],
        [
            [
                job,
                tool,
                *(f"{item[tool][key]:.1f}" for key in ("seconds", "processor_seconds")),
                *(format_bytes(int(item[tool][key])) for key in ("peak_bytes", "above_imports_bytes")),
            ]
            for job, item in taken.items()
            for tool in TOOLS
        ],
    )
    table(
        "Merged models against the adapter on its base",
        ["method", "adapter", "merge", "max |dlogit|", "mean |dlogit|", "mean KL", "top-1"],
        [[item["method"], item["adapter"], item["merge"], *_numbers(item)] for item in found["fidelity"]],
    )


def _numbers(item: dict[str, Any]) -> list[str]:
    if "problem" in item:
        return [item["problem"], "", "", ""]
    keys = ("max_abs_logit_difference", "mean_abs_logit_difference", "mean_kl")
    return [*(f"{item[key]:.2g}" for key in keys), f"{item['top1_agreement']:.1%}"]


def judge(found: dict[str, Any], *, quick: bool) -> list[Goal]:
    """Compare what was found with what must hold; costs of a quick run are those of starting up, and no goals."""
    goals = []
    for method, kind in CELLS:
        if method == "INT8":
            continue  # LLM.int8 rounds activations while it runs, which no dense model repeats: reported, no goal
        rows = {item["merge"]: item for item in found["fidelity"] if (item["method"], item["adapter"]) == (method, kind)}
        exact, stored, floor = rows[EXACT]["max_abs_logit_difference"], rows[STORED]["mean_kl"], rows[FLOOR]["mean_kl"]
        goals.append(Goal(f"{method} {kind}: float32, max |dlogit|", exact, "at most 1e-4", exact <= 1e-4))
        if method != "NoQuant":  # a base stored in bfloat16 is on the grid that its merge is rounded to
            goals.append(Goal(f"{method} {kind}: bfloat16 stored, mean KL", stored, "at most 1e-4", stored <= 1e-4))
            share = stored / max(floor, 1e-9)
            goals.append(Goal(f"{method} {kind}: bfloat16 stored, KL / rounding's", share, "at most 2", share <= 2))
    if quick:
        return goals
    for job in JOBS[1:]:
        faster = found["small"][job]["times_faster"]
        goals.append(Goal(f"{job}: times faster than PEFT", faster, "at least 5", faster >= 5))
    for job in JOBS:
        share = found["small"][job]["share_of_peak_above_imports"]
        goals.append(Goal(f"{job}: share of PEFT's peak, above imports", share, "at most 0.2", share <= 0.2))
    fewest, most = (found["synthetic"][layers] for layers in sorted(found["synthetic"]))
    share = most["share_of_peak"]
    goals.append(Goal("synthetic 2 GB: share of PEFT's peak, whole process", share, "at most 0.2", share <= 0.2))
    growth = (most["quantkit"]["peak_bytes"] - fewest["quantkit"]["peak_bytes"]) / (most["bytes"] - fewest["bytes"])
    goals.append(Goal("synthetic: peak memory per byte of more layers", growth, "at most 0.02", growth <= 0.02))
    return goals


if __name__ == "__main__":
    sys.exit(main())
