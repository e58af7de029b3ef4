"""How far from the measured peak is the memory that `quantkit train` forecasts before it loads a model?

    python benchmarks/forecast.py [--quick] [--json FILE] [--shapes NAME …] [--calibration FILE] [--at-once N] [--fresh]

Runs of two steps on models with random weights, of 16 where rows differ in length, each by `quantkit train` in a process of its
own. The forecast is made of configuration and row lengths before weights are read, and stands with the peak, the kernel's own
mark of the training stage, in the record of the artifact; it is read from there. Memory that the libraries take anyway is part
of both numbers, as it is of what must fit; the error above it is printed beside. Constants (that memory, and the allocator's
share) are fitted on two shapes and judged on the others, and the other way round; `--calibration` writes those fitted on all of
them, as quantkit ships them. `--fresh` starts each run anew instead of forking it. `--quick` makes two runs on small models: it
proves that this runs. Exit code 3 when a goal is lost.
"""

import argparse
import json
import os
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
        found = measure(wanted, Path(scratch), arguments)
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
    parser.add_argument("--fresh", action="store_true", help="every run imports the libraries anew")
    return parser.parse_args()


def measure(wanted: Sequence[Case], scratch: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return of each run its name, shape, and the `memory` of its record, or the error it ended with."""
    files = [_job(case, number, scratch, small=arguments.quick) for number, case in enumerate(wanted)]
    at_once = min(arguments.at_once, len(files))
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda part: _run(part, fresh=arguments.fresh), [files[at::at_once] for at in range(at_once)]):
            pass
    return [_found(case, file) for case, file in zip(wanted, files, strict=True)]


def _found(case: Case, file: Path) -> dict[str, Any]:
    from quantkit_registry.records import read_record

    item: dict[str, Any] = {"name": case.name, "shape": case.shape}
    records = list(file.with_suffix("").glob("*/quantization_metadata.json"))
    if records:
        return item | {"memory": dict(read_record(records[0].parent).memory)}
    log = file.with_suffix(".log")
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()] if log.is_file() else []
    return item | {"error": (lines or ["its process ended without a word"])[-1][:300]}


def _job(case: Case, number: int, scratch: Path, *, small: bool) -> Path:
    """Make what a run needs and return the file with its settings."""
    from forecast_worker import make_model, write_rows

    from quantkit.modeling import load_tokenizer

    model, rows = scratch / case.shape, scratch / f"rows{number}.jsonl"
    if not model.exists():
        make_model(model, SHAPES[case.shape], small=small, seed=SEED)
    size = {"length": case.length, "rows": case.rows * case.steps, "mixed": case.mixed}
    write_rows(rows, load_tokenizer(str(model)), **size, seed=SEED)
    settings: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_name": str(rows),
        "max_length": case.length,
        "per_device_train_batch_size": case.rows,
        "max_steps": case.steps,
        "lora_r": 16,
        "merge_after_train": False,
        "output_dir": str(scratch / f"run{number}"),
        "device": "cpu",
        "seed": SEED,
        "force": True,
    }
    file = scratch / f"run{number}.json"
    file.write_text(json.dumps(settings | case.settings))
    return file


def _run(files: Sequence[Path], *, fresh: bool) -> None:
    """Carry runs out, one after another, forked from one process or each from its own."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, ROOMS)),
    }
    worker = [sys.executable, str(HERE / "forecast_worker.py")]
    for command in [[*worker, "--fresh", str(file)] for file in files] if fresh else [[*worker, *map(str, files)]]:
        subprocess.run(command, check=False, capture_output=True, cwd=files[0].parent, env=environment)


if __name__ == "__main__":
    sys.exit(main())
