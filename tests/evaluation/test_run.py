"""A whole evaluation of the tiny model in memory: what is asked, what is kept, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.divergence import Reference
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
        assert sum(row.generated_tokens for row in result.rows) == result.cost.generated_tokens
        nll, tokens = sum(row.nll or 0 for row in result.rows), sum(row.nll_tokens for row in result.rows)
        assert math.exp(nll / tokens) == pytest.approx(result.scores["perplexity_response"].value)
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
    assert {"FLOOR", "EMPTY"} <= set(result.marks)
    assert "EMPTY" in result.degenerate
    assert (result.main.value, result.main.coverage) == (0.0, 0.0)
    assert result.scores["perplexity_response"].is_floor


def rows_file(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def choices(count: int) -> list[dict[str, object]]:
    return [
        {
            "question": f"There are {n} eggs and 3 eggs. How many? A. {n} B. {n + 3} eggs C. none D. it is {n + 30}",
            "answer": "B",
        }
        for n in range(2, 2 + count)
    ]


def test_options_are_weighed_under_the_prompt_and_scored_like_their_floors(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    import torch

    model, tokenizer = loaded
    (task,) = read_tasks([rows_file(tmp_path / "eggs.jsonl", choices(6))], kind="choice-likelihood")
    (result,) = evaluate_model(model, tokenizer, [task], batch_size=4)
    assert result.settings["continuation"] == "text"
    assert "max_new_tokens" not in result.settings
    assert {floor.name for floor in result.main.floors} == {"empty", "constant", "majority", "echo", "first", "longest"}
    assert set(result.scores) == {"exact_match", "exact_match_norm"}
    assert (result.main.coverage, result.cost.generated_tokens) == (1.0, 0)
    for row, example in zip(result.rows, task.examples, strict=True):
        asked = tokenizer.apply_chat_template(list(example.messages[:-1]), add_generation_prompt=True, tokenize=False)
        values = {}
        for option in ("A", "B", "C", "D"):
            text = next(item.text for item in task.choices[row.row - 1] if item.label == option)  # type: ignore[attr-defined]
            before = tokenizer(asked.rstrip(), add_special_tokens=False)["input_ids"]
            whole = tokenizer(asked + text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                said = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            values[option] = sum(float(said[at - 1, whole[at]]) for at in range(len(before), len(whole)))
        assert row.answer == max(values, key=lambda label: values[label])
        assert row.nll == pytest.approx(-values["B"], abs=2e-4)
        assert row.stopped is None
    assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_plain_texts_have_a_perplexity_and_nothing_is_generated(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    path = rows_file(tmp_path / "text.jsonl", [{"text": f"There are {n} eggs in a box."} for n in range(5)])
    log = MemoryLog()
    (result,) = evaluate_model(*loaded, read_tasks([path]), memory=log)
    assert (result.kind, result.metric) == ("perplexity", "perplexity_response")
    assert [stage.stage for stage in log.stages] == ["text: perplexity"]
    assert result.cost.tokens_per_s == 0.0
    assert sum(row.nll or 0 for row in result.rows) > 0
    assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.fixture(scope="module")
def noisy(tiny_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * parameter.std() * torch.randn_like(parameter))
    return model


def test_with_a_reference_every_task_says_how_far_the_model_is_from_it(
    loaded: tuple[Any, Any], noisy: Any, tmp_path: Path
) -> None:
    log = MemoryLog()
    reference = Reference("clean", lambda: loaded[0])
    text = rows_file(tmp_path / "text.jsonl", [{"text": f"There are {n} eggs in a box."} for n in range(5)])
    tasks = [read_tasks(limit=4)[0], *read_tasks([text], kind="divergence")]
    results = evaluate_model(noisy, loaded[1], tasks, max_new_tokens=4, memory=log, reference=reference)
    assert [stage.stage for stage in log.stages] == [
        "unseen_numbers: generate",
        "unseen_numbers: perplexity",
        "text: perplexity",
        "reference: load",
        "unseen_numbers: divergence",
        "text: divergence",
    ]
    for result in results:
        assert result.settings["reference"] == "clean"
        assert 0 < result.scores["kl_mean"].value < result.scores["kl_p99"].value
        kl = sum((row.kl or 0.0) * row.nll_tokens for row in result.rows) / sum(row.nll_tokens for row in result.rows)
        assert kl == pytest.approx(result.scores["kl_mean"].value)
        assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert (results[1].metric, results[1].marks) == ("kl_mean", [])


def test_a_model_is_its_own_reference(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    (result,) = evaluate_model(
        *loaded, read_tasks(limit=2, kind="divergence")[:1], reference=Reference("itself", lambda: model)
    )
    assert (result.main.value, result.scores["top1_agreement"].value) == (0.0, 1.0)


def test_divergence_without_a_reference_is_refused_before_anything_is_measured(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="task 'divergence' compares with a reference model; --reference names it"):
        evaluate_model(*loaded, read_tasks(limit=2, kind="divergence"))
