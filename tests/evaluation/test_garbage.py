"""R11: whatever a broken model writes is marked, and no healthy one is, whatever its style."""

import random
from pathlib import Path
from typing import cast

import pytest

from quantkit.evaluation.generation import generate, stop_token_ids
from quantkit.evaluation.rendering import render
from quantkit.evaluation.results import MARKS
from quantkit.evaluation.sources import read_tasks
from quantkit.evaluation.tasks import AnswerTask
from tests.evaluation.garbage import DEGENERATE, STYLES, evaluated, healthy, result_of, tasks

SHARES = (0.97, 0.9)
"""Right answers of a healthy model: at 60 rows enough to be above every floor."""


def test_12_degenerate_predictors_on_4_tasks_are_all_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    missed, unnamed = [], []
    for task in tasks():
        for name, (mark, predictor) in DEGENERATE.items():
            marks = evaluated(task, predictor(task, random.Random(name))).marks
            missed += [(task.kind, name)] if not marks else []
            unnamed += [(task.kind, name, marks)] if mark not in marks else []
    total = len(DEGENERATE) * len(tasks())
    with capsys.disabled():
        print(
            f"\n{total - len(missed)}/{total} degenerate runs flagged, {total - len(unnamed)}/{total} by the mark they deserve"
        )
    assert total == 48
    assert missed == []
    assert unnamed == []


def test_what_is_broken_whatever_it_scores_makes_the_artifact_degenerate() -> None:
    for task in tasks():
        for name, (mark, predictor) in DEGENERATE.items():
            if mark not in ("FLOOR", "CONSTANT"):
                assert mark in evaluated(task, predictor(task, random.Random(name))).degenerate, (task.kind, name)


def test_30_healthy_runs_are_not_flagged_and_none_comes_near_a_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        (task.kind, number, evaluated(task, healthy(task, style, share=share, chance=random.Random(number))))
        for task in tasks()
        for number, style in enumerate(STYLES[task.kind])
        for share in SHARES
    ]
    flagged = [(kind, number, run.marks) for kind, number, run in runs if run.marks]
    with capsys.disabled():
        print(f"\n{len(flagged)}/{len(runs)} healthy runs flagged")
    assert (len(runs), flagged) == (30, [])
    for mark in (mark for mark in MARKS if mark.rate != "unlikely_rate"):  # it needs a reference model
        values = [run.scores[mark.rate].value for _, _, run in runs]
        assert max(value if mark.bad_when_high else 1 - value for value in values) <= mark.threshold / 2, mark.name


def test_a_weak_model_is_at_the_floor_but_not_degenerate(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    (task, _) = read_tasks()
    prompts = [row.prompt_ids for row in render(task, tokenizer, stop_token_ids(model, tokenizer))]
    result = result_of(cast("AnswerTask", task), generate(model, tokenizer, prompts, batch_size=30, max_new_tokens=24))
    assert result.marks == ["FLOOR"]
    assert result.degenerate == []
