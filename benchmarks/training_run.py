"""How are tools measured side by side? In turns, each run in a process of its own, so that all meet the same machine.

A round is one run of every case. Of the rounds each step's median counts. What fails becomes a row with the last line of its
error; peers run in the environment that `peers.environments` makes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from training_cases import Case

from quantkit.errors import QuantkitError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = (ROOT, ROOT / "plugins", ROOT / "registry", ROOT / "tools")
SEED, LEARNING_RATE, RANK = 42, 2e-4, 16


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    model: str
    rows: dict[str, Any]
    """`random`, `grouped` and `long` batches, and those of whole runs."""
    adapted_layers: str
    """`attention` or `all-linear`."""
    max_length: int
    scratch: Path
    peer_envs: Path
    limit_s: int
    one_process: bool
    """Whether our jobs share a process; peaks of memory then mean nothing."""


class ProcessFailed(Exception):  # noqa: N818 - it is reported, not raised to users
    """A process ended with an error; the text is its last line."""


def reference(setting: Setting) -> dict[str, Any]:
    """Write adapters and float64 gradients into the scratch folder; return loss and facts of the model."""
    extra = {"gradients": str(setting.scratch / "reference.safetensors"), "batches": setting.rows["random"][:1]}
    return run_jobs([_job(setting, "reference", "reference") | extra], setting)[0]


def products(setting: Setting, facts: dict[str, Any], tokens: int, seconds: float) -> dict[str, float]:
    """Return the GFLOP per processor second of the model's largest matrix product on a batch's tokens, by data type."""
    extra = {"shape": facts["shape"], "tokens": tokens, "seconds": seconds}
    return run_jobs([_job(setting, "products", "products") | extra], setting)[0]


def run_cases(cases: Sequence[Case], setting: Setting, targets: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Return of each case what was found, with each step's median over the rounds."""
    from quantkit.console import say

    found: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for number in range(rounds):
        jobs = [_training_job(case, setting, targets, first=number == 0) for case in cases]
        if setting.one_process and all(case.tool == "quantkit" for case in cases):
            for case, answer in zip(cases, run_jobs(jobs, setting), strict=True):
                found[case.name].append(answer)
            continue
        for case, job in zip(cases, jobs, strict=True):
            say(f"round {number + 1} of {rounds}: {case.name} ...")
            try:
                found[case.name] += run_jobs([job], setting, case)
            except (ProcessFailed, QuantkitError) as error:
                found[case.name].append({"error": str(error)})
    return {name: _median(items) for name, items in found.items()}


def run_jobs(jobs: list[dict[str, Any]], setting: Setting, case: Case | None = None) -> list[dict[str, Any]]:
    """Run jobs one after another in one process; return their answers.

    Raises:
        ProcessFailed: it ended with an error or took too long.
        QuantkitError: pip could not make the peer's environment.
    """
    files = []
    for job in jobs:
        files.append(f"{job['answer']}.job")
        Path(files[-1]).write_text(json.dumps(job))
    command, rooms = [sys.executable, str(HERE / "training_worker.py")], (HERE, *ROOMS)
    if case is not None and case.tool == "trl":
        from peers.environments import peer_python

        command, rooms = [str(peer_python("trl", setting.peer_envs)[0]), "-m", "peers.trl"], (HERE,)
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, rooms)),
        **(case.environment if case is not None else {}),
    }
    try:
        done = subprocess.run(
            [*command, *files],
            check=False,
            capture_output=True,
            text=True,
            timeout=setting.limit_s,
            cwd=setting.scratch,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise ProcessFailed(f"given up after {setting.limit_s} s") from None
    answers = [Path(job["answer"]) for job in jobs]
    if done.returncode or not all(answer.is_file() for answer in answers):
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ProcessFailed((lines or [f"exit code {done.returncode} without a word"])[-1][:300])
    found = [dict(json.loads(answer.read_text())) for answer in answers]
    for answer in answers:
        answer.unlink()
    return found


def gradients_file(setting: Setting, name: str) -> Path:
    """Return where a case's gradients of the first batch lie."""
    return setting.scratch / f"{''.join(letter if letter.isalnum() else '-' for letter in name)}.safetensors"


def _training_job(case: Case, setting: Setting, targets: list[str], *, first: bool) -> dict[str, Any]:
    own: dict[str, Any] = {
        "batches": setting.rows[case.rows],
        "changes": case.changes,
        "targets": targets,
        "peft": case.peft,
    }
    if first and case.rows in ("random", "grouped") and case.peft == "LoRa":
        own["gradients"] = str(gradients_file(setting, case.name))
    return _job(setting, "train", case.name) | own


def _job(setting: Setting, kind: str, name: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": setting.model,
        "adapters": str(setting.scratch / "adapters.safetensors"),
        "adapted_layers": setting.adapted_layers,
        "answer": str(gradients_file(setting, name).with_suffix(".json")),
        "scratch": str(setting.scratch / "checkpoints"),
        "max_length": setting.max_length,
        "lora_r": RANK,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
    }


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    good = [item for item in rounds if "error" not in item]
    if not good:
        return {"error": rounds[0]["error"]}
    found = dict(good[0]) | {"rounds": len(good), "rounds_cpu_s": [sum(item["cpu_s"]) for item in good]}
    for key in ("cpu_s", "wall_s"):
        found[key] = [median(step) for step in zip(*(item[key] for item in good), strict=True)]
    return found | {"peak_rss_bytes": max(item["peak_rss_bytes"] for item in good)}
