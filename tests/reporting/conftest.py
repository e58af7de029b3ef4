"""Artifacts and results as a report reads them, without a model: eight artifacts on two tasks, one at its floor, one broken."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.evaluation.results import Cost, RowResult, TaskResult
from quantkit.evaluation.statistics import Floor, Score, share_score
from quantkit.reporting.facts import Subject
from quantkit.reporting.report import Report

N = 60


def task_result(
    right: int, *, task: str = "codes", empty: int = 0, device: str = "cpu", text: str = "", **cost: Any
) -> TaskResult:
    """Return a result of `right` right answers to 60 rows."""
    floors = [Floor(name="empty", value=0.0), Floor(name="majority", value=0.1)]
    rows = [
        RowResult(
            row=row,
            gold=str(row),
            answer=str(row) if row < right else None,
            correct=row < right,
            stopped=True,
            text=text or f"answer {row}",
        )
        for row in range(N)
    ]
    values: dict[str, Any] = {"tokens_per_s": 100.0, "peak_rss_bytes": 800 << 20} | cost
    return TaskResult(
        task=task,
        kind="numeric",
        metric="exact_match",
        source="rows.jsonl",
        data_fingerprint="ab" * 32,
        n=N,
        seed=0,
        settings={"batch_size": 16, "max_new_tokens": 48, "system_prompt": None, "device": device, "dtype": "float32"},
        scores={
            "exact_match": share_score(right, N, coverage=59 / 60, floors=floors),
            "parsed_rate": share_score(59, N),
            "empty_rate": share_score(empty, N),
            "repetition_rate": share_score(0, N),
            "stop_rate": share_score(N, N),
        },
        cost=Cost(generated_tokens=900, generation_s=9.0, perplexity_s=1.0, **values),
        rows=rows,
    )


def perplexity_result(value: float) -> TaskResult:
    """Return a result of a task that generates nothing, and whose lower values are better."""
    score = Score(
        value=value, n=N, low=value * 0.9, high=value * 1.1, interval="bootstrap", coverage=1.0,
        floors=(Floor(name="uniform", value=512.0),), higher_is_better=False,
    )  # fmt: skip
    rows = [RowResult(row=row, gold="", answer=None, correct=False, nll=math.log(value) * 3, nll_tokens=3) for row in range(N)]
    made = task_result(0, task="text")
    return replace(
        made, kind="perplexity", metric="perplexity_response", scores={"perplexity_response": score}, rows=rows,
        cost=Cost(generated_tokens=0, generation_s=0.0, tokens_per_s=0.0, perplexity_s=1.0, peak_rss_bytes=700 << 20),
    )  # fmt: skip


def subject(number: int, name: str, *results: TaskResult, **changes: Any) -> Subject:
    """Return an artifact with a record that holds losses, a gate and a recipe."""
    values: dict[str, Any] = {
        "number": number,
        "name": name,
        "artifact": f"{number:012x}".ljust(64, "0"),
        "kind": "model",
        "method": "GPTQ",
        "peft": "LoRa16",
        "quantization": {"method": "GPTQ", "weights_dtype": "int4", "weights_bits": 4},
        "size_bytes": number << 20,
        "bits_per_weight": 4.5,
        "record": {
            "created_at": "2026-11-22T08:00:00+00:00",
            "recipe": {"method": "GPTQ", "options": {"group_size": 32}},
            "training": {
                "steps": 3,
                "losses": [3.0, 2.0, 1.0 / number],
                "evaluation_loss_after": 0.9,
                "settings": {"seed": 42},
            },
            "verification": {"gate": {"outcome": "passed", "reasons": [], "reloaded": {"mean_kl": 0.02}}},
            "memory": {"stages": [{"stage": "train", "duration_s": 2.5, "peak_rss_bytes": 1 << 30, "inside": None}]},
        },
        "lineage": ["child: quantized with GPTQ [0123456789ab]", "  └ base: base"],
        "results": list(results),
    }
    return Subject(**(values | changes))


@pytest.fixture(scope="package")
def report() -> Report:
    """Two healthy artifacts that the intervals tell apart, two tied ones, one at its floor, one empty, one unmeasured."""
    subjects = [
        subject(1, "best", task_result(58, peak_rss_bytes=900 << 20), perplexity_result(3.0), method="NoQuant"),
        subject(2, "middle", task_result(40), perplexity_result(3.1)),
        subject(3, "middle-too", task_result(38, peak_rss_bytes=700 << 20, tokens_per_s=300.0), kind="adapter", method="QLORA"),
        subject(4, "at-its-floor", task_result(8, peak_rss_bytes=100 << 20), perplexity_result(400.0), method="RTN"),
        subject(5, "silent", task_result(57, empty=50, peak_rss_bytes=90 << 20), method="RTN", peft="NoPeft"),
        subject(6, "unmeasured", here=True),
    ]
    return Report.of(subjects, title="artifacts", faults=["A result was left out: results/abc…/t.json: no object"])


@pytest.fixture(scope="package")
def written(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's page as a file."""
    from quantkit.reporting.page import render_page

    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(report.with_comparisons()), encoding="utf-8")
    return path
