"""`quantkit demo`: does the whole road work on this machine? Measure, train with QLORA, merge, save, detect, measure again.

Every step is a command of its own in a process of its own, printed before it runs: what a newcomer sees is what they
will type. What is there already (model, data, artifact, results) is reused.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.console import format_duration, say, table
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import read_manifest, write_text

HELD_OUT = ("unseen_numbers", "unseen_templates")
LARGEST_OPERAND = 20
"""What a model of 135 M parameters can learn to subtract within 50 steps."""
MAX_NEW_TOKENS = 48
GOALS = {"boxed_rate": 0.98, "stop_rate": 0.98, "exact_match": 0.60}
"""Shares that the trained model must reach on unseen numbers; the plain model reaches about 0 of the first two."""


@dataclass(frozen=True)
class Demo:
    """Train and evaluate a small real model from end to end; about 6 minutes on two cores, most of it once."""

    folder: str = "demo"
    """Where model, data and artifacts go."""
    model: str | None = None
    """A model folder or hub id of your own instead of SmolLM2-135M-Instruct."""
    steps: int = 50
    """Optimizer steps of 8 rows."""
    rows: int = 60
    """Rows of each held-out set."""


def main(arguments: list[str]) -> int:
    """Run the demo; exit code 3 when the trained model does not reach the goals."""
    from quantkit_tools.small_flags import read_small_flags

    settings = read_small_flags(Demo, "demo", arguments)
    for name, value in (("steps", settings.steps), ("rows", settings.rows)):
        if value < 1:
            raise UsageError(f"--{name} is {value}; at least 1 is needed")
    start = time.monotonic()
    folder = Path(settings.folder)
    data = _write_data(folder / "data", settings.rows)
    model = settings.model or str(_model(folder))
    held_out = ",".join(f"openmath:{data / name}.jsonl" for name in HELD_OUT)  # asked with one system prompt, before and after
    root = str(folder / "artifacts")
    evaluation = ["--data", held_out, "--registry", root, "--max-new-tokens", str(MAX_NEW_TOKENS)]

    _title("1. How good is the model before?")
    before = _read("evaluate", model, *evaluation, degenerate_too=True)  # untrained, it may go on without end
    _title("2. Train LoRA adapters on a 4-bit base, merge, save")
    training = [
        "--model-name-or-path", model, "--quant-method", "QLORA", "--peft-config", "LoRa", "--lora-r", "16",
        "--dataset-name", f"openmath:{data / 'train.jsonl'}", "--learning-rate", "1e-3", "--lr-scheduler-type", "cosine",
        "--max-steps", str(settings.steps), "--output-dir", root,
    ]  # fmt: skip
    artifact = _read("train", *training, "--dry-run")["artifact"]
    if read_manifest(Path(artifact)) is None:
        _run("train", *training)
    else:
        say(f"{artifact} is there already; remove it to train again")
    _title("3. What is in that folder?")
    _run("registry", "show", artifact, "--root", root)
    _title("4. How good is it now? (detected and loaded from the folder alone)")
    after = _read("evaluate", artifact, *evaluation)
    _title("5. What is in the registry?")
    _run("registry", "ls", "--root", root)
    _summary(before, after)
    say(f"demo finished in {format_duration(time.monotonic() - start)}; everything lies in {folder}/")
    _check(after)
    say(f"next: quantkit report --registry {root} --html {folder / 'report.html'}")
    return 0


def _model(folder: Path) -> Path:
    from quantkit_tools.demo_model import real_model

    return real_model(folder / "model")


def _write_data(folder: Path, held_out: int) -> Path:
    from quantkit.data.arithmetic import arithmetic_data

    data = arithmetic_data(train=400, held_out=held_out, largest=LARGEST_OPERAND)
    for name in ("train", *HELD_OUT):
        rows = getattr(data, name)
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    say(f"data: 400 training rows and two held-out sets of {held_out} rows in {folder}, e.g.")
    say(f"  {data.train[0]['question']} -> {data.train[0]['answer']}")
    return folder


def _title(text: str) -> None:
    say(f"\n== {text}", style="bold")


def _run(*arguments: str, capture: bool = False, degenerate_too: bool = False) -> str:
    say(f"$ quantkit {shlex.join(arguments)}", style="dim")
    sys.stdout.flush()
    command = [sys.executable, "-P", "-m", "quantkit_tools.cli", *arguments]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0 and not (degenerate_too and done.returncode == VerificationError.exit_code):
        raise QuantkitError(f"quantkit {arguments[0]} ended with exit code {done.returncode}; its message stands above")
    return done.stdout or ""


def _read(*arguments: str, degenerate_too: bool = False) -> dict[str, Any]:
    printed = _run(*arguments, "--json", capture=True, degenerate_too=degenerate_too)
    if not printed:
        raise QuantkitError(f"quantkit {arguments[0]} --json printed nothing; its message stands above")
    data = json.loads(printed)
    if not isinstance(data, dict):
        raise QuantkitError(f"quantkit {arguments[0]} --json did not print an object")
    return data


def _summary(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print the scores before and after beside the best floor."""
    rows = []
    for name, score in _scores(after).items():
        old = _scores(before)[name]
        floor = max((entry["value"] for entry in score["floors"]), default=None)
        rows.append([*name, f"{old['value']:.1%}", f"{score['value']:.1%}", None if floor is None else f"{floor:.1%}"])
    table("Before and after", ["data", "score", "before", "after", "best floor"], rows)


def _scores(evaluation: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    results = evaluation["artifacts"][0]["results"]
    return {(result["task"], name): result["scores"][name] for result in results for name in GOALS}


def _check(after: dict[str, Any]) -> None:
    for (task, name), score in _scores(after).items():
        if task.endswith("unseen_numbers") and score["value"] < GOALS[name]:
            raise VerificationError(f"{name} on {task} is {score['value']:.1%}; the demo should reach {GOALS[name]:.0%}")
