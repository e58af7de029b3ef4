"""How far from the measured peak is the memory that `quantkit train` forecasts before it loads a model?

    python benchmarks/forecast.py [--quick] [--json FILE] [--shapes NAME …] [--calibration FILE] [--at-once N]

Runs of a few steps on models with random weights, each by `quantkit train` in a process of its own. The forecast is made of
configuration and row lengths before weights are read, and stands with the peak, the kernel's own mark of the training stage, in
the record of the artifact; it is read from there. Memory that the libraries take anyway is part of both numbers, as it is of
what must fit; the error above it is printed beside. Constants (that memory, and the allocator's share) are fitted on two
shapes and judged on the other two; `--calibration` writes those fitted on all of them, as quantkit ships them.
`--quick` makes two runs in one process on small models: it proves that this runs. Exit code 3 when a goal is lost.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from forecast_cases import FITTED_ON, SHAPES, Case, cases, quick_cases
from forecast_judge import goals_of, judged, show
from goals import add_flags, finish

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = (HERE, ROOT, ROOT / "plugins", ROOT / "registry", ROOT / "tools")
SEED = 42


def main() -> int:
    """Measure, print, write, and return the exit code."""
    sys.path.insert(0, str(ROOT))
    arguments = parse()
    from quantkit.console import use_stderr
    from quantkit.environment import describe_environment

    use_stderr()
    wanted = quick_cases() if arguments.quick else [case for shape in arguments.shapes for case in cases(shape)]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        found = measure(
            wanted, Path(scratch), at_once=arguments.at_once, one_process=arguments.quick, limit_s=arguments.limit_s
        )
    result: dict[str, Any] = {
        "setting": {"shapes": arguments.shapes, "fitted_on": FITTED_ON, "runs": len(wanted), "seed": SEED},
        "environment": describe_environment("cpu") | {"threads": os.environ.get("OMP_NUM_THREADS", "as many as cores")},
        "runs": found,
    }
    result |= judged(found, quick=arguments.quick, calibration=arguments.calibration)
    show(result)
    return finish("forecast", result, goals_of(result, quick=arguments.quick), arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="models (default all)")
    parser.add_argument("--calibration", metavar="FILE", type=Path, help="write the constants fitted on all runs there")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; their memory is each one's own (default 1)")
    parser.add_argument("--scratch", metavar="DIR", help="where models and artifacts lie for as long as this runs")
    parser.add_argument("--limit-s", type=int, default=1800, help="seconds after which a run is given up")
    return parser.parse_args()


def measure(wanted: Sequence[Case], scratch: Path, *, at_once: int, one_process: bool, limit_s: int) -> list[dict[str, Any]]:
    """Return of each run its name, shape, and the `memory` of its record, or the error it ended with."""
    from quantkit.console import say

    jobs = [_job(case, number, scratch, small=one_process) for number, case in enumerate(wanted)]

    def carried_out(numbers: Sequence[int]) -> list[dict[str, Any]]:
        error = _run([jobs[number] for number in numbers], scratch, limit_s)
        found = [_found(wanted[number], scratch / f"made-{number}", error) for number in numbers]
        for number, item in zip(numbers, found, strict=True):
            say(f"{number + 1} of {len(wanted)}: {item['name']}{': ' + error if error else ''}")
            shutil.rmtree(scratch / f"made-{number}", ignore_errors=True)
        return found

    together = [range(len(jobs))] if one_process else [[number] for number in range(len(jobs))]
    with ThreadPoolExecutor(at_once) as pool:
        return [item for found in pool.map(carried_out, together) for item in found]


def _found(case: Case, made: Path, error: str) -> dict[str, Any]:
    from quantkit_registry.records import read_record

    item: dict[str, Any] = {"name": case.name, "shape": case.shape}
    records = [] if error else list(made.glob("*/quantization_metadata.json"))
    return item | ({"memory": dict(read_record(records[0].parent).memory)} if records else {"error": error or "no artifact"})


def _job(case: Case, number: int, scratch: Path, *, small: bool) -> Path:
    """Make what a run needs and return the file with its settings."""
    from forecast_worker import make_model, write_rows

    from quantkit.modeling import load_tokenizer

    model, rows = scratch / case.shape, scratch / f"rows{number}.jsonl"
    if not model.exists():
        make_model(model, SHAPES[case.shape], small=small, seed=SEED)
    write_rows(rows, load_tokenizer(str(model)), length=case.length, rows=case.rows * case.steps, seed=SEED)
    settings: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_name": str(rows),
        "max_length": case.length,
        "per_device_train_batch_size": case.rows,
        "max_steps": case.steps,
        "lora_r": 16,
        "merge_after_train": False,
        "output_dir": str(scratch / f"made-{number}"),
        "device": "cpu",
        "seed": SEED,
        "force": True,
    }
    file = scratch / f"run{number}.json"
    file.write_text(json.dumps(settings | case.settings))
    return file


def _run(jobs: list[Path], scratch: Path, limit_s: int) -> str:
    """Carry runs out in one process; return "" or the last line of its error."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, ROOMS)),
    }
    command = [sys.executable, str(HERE / "forecast_worker.py"), *map(str, jobs)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=limit_s, cwd=scratch, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"given up after {limit_s} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "" if not done.returncode else (lines or [f"exit code {done.returncode} without a word"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
