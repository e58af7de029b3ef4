"""A whole evaluation of the tiny model in memory: what is asked, what is kept, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.rendering import render
from quantkit.evaluation.results import TaskResult
from quantkit.evaluation.run import evaluate_model
from quantkit.evaluation.sources import read_tasks
from quantkit.memory import MemoryLog


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


def test_one_result_per_task_with_everything_a_number_needs(loaded: tuple[Any, Any]) -> None:
    log = MemoryLog()
    tasks = read_tasks(limit=20, seed=5)
    results = evaluate_model(*loaded, tasks, max_new_tokens=24, seed=5, memory=log)
    assert [result.task for result in results] == ["unseen_numbers", "unseen_templates"]
    for result, task in zip(results, tasks, strict=True):
        assert (result.n, result.seed, result.data_fingerprint) == (20, 5, task.fingerprint)
        assert {floor.name for floor in result.main.floors} == {"empty", "constant", "majority", "echo", "sum"}
        assert result.scores["stop_rate"].value > 0.8
        assert result.scores["boxed_rate"].value > 0.5
        assert result.main.coverage == result.scores["parsed_rate"].value
        assert result.scores["perplexity_response"].value < result.scores["perplexity_response"].best_floor.value  # type: ignore[union-attr]
        assert sum(row.correct for row in result.rows) == round(result.main.value * 20)
        assert result.cost.peak_rss_bytes > 1 << 20
        assert result.cost.tokens_per_s > 0
        assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert [stage.stage for stage in log.stages] == [
        f"{task.name}: {what}" for task in tasks for what in ("generate", "perplexity")
    ]


def test_the_batch_size_changes_no_answer_in_float32(loaded: tuple[Any, Any]) -> None:
    tasks = read_tasks(limit=9)[:1]
    one, nine = (evaluate_model(*loaded, tasks, batch_size=size, max_new_tokens=20)[0] for size in (1, 9))
    assert one.rows == nine.rows
    for name in ("perplexity_response", "perplexity_all"):
        assert one.scores[name].value == pytest.approx(nine.scores[name].value, rel=1e-5)


def test_prompts_are_rendered_as_rows_are_trained(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    task = read_tasks(limit=3, system_prompt="Add up.")[0]
    for example, row in zip(task.examples, render(task, tokenizer, [2]), strict=True):
        asked = tokenizer.decode(row.prompt_ids)
        assert asked == (
            f"<|im_start|>system\nAdd up.<|im_end|>\n<|im_start|>user\n{example.question}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert row.input_ids[: len(row.prompt_ids)] == row.prompt_ids
        learnt = [token for token in row.labels if token != -100]
        assert tokenizer.decode(learnt) == example.response + "<|im_end|>"


def test_the_system_prompt_is_recorded(loaded: tuple[Any, Any]) -> None:
    with_one, without = read_tasks(limit=2, system_prompt="Add up.")[:1], read_tasks(limit=2)[:1]
    assert evaluate_model(*loaded, with_one, max_new_tokens=2)[0].settings["system_prompt"] == "Add up."
    assert evaluate_model(*loaded, without, max_new_tokens=2)[0].settings["system_prompt"] is None


@pytest.mark.parametrize("setting", ["batch_size", "max_new_tokens"])
def test_settings_below_one_are_refused(loaded: tuple[Any, Any], setting: str) -> None:
    with pytest.raises(UsageError, match=f"{setting} is 0; it must be at least 1"):
        evaluate_model(*loaded, read_tasks(limit=2), **{setting: 0})


def test_two_data_sets_of_one_name_are_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="two data sets are called 'unseen_numbers'"):
        evaluate_model(*loaded, [read_tasks(limit=2)[0]] * 2)


def test_a_silenced_model_is_marked_and_does_not_look_fast_or_good(loaded: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = loaded
    head = model.get_output_embeddings()
    own = head.weight
    try:
        bias = torch.nn.Parameter(torch.zeros(own.shape[0]))
        with torch.no_grad():
            bias[tokenizer.eos_token_id] = 1e4
        head.bias = bias
        (result,) = evaluate_model(model, tokenizer, read_tasks(limit=10)[:1], max_new_tokens=8)
    finally:
        head.bias = None
    assert result.marks == ["FLOOR", "EMPTY"]
    assert (result.main.value, result.main.coverage) == (0.0, 0.0)
    assert result.scores["perplexity_response"].is_floor
