"""Does lm-eval run on the very model that was loaded, and do its results say what ours say? Tasks here are local files."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.evaluation.harness import evaluate_harness
from quantkit.evaluation.harness.model import require_harness
from quantkit.evaluation.likelihood import encode_pair, loglikelihoods
from quantkit.evaluation.perplexity import row_losses
from quantkit.evaluation.results import TaskResult
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb
from tests.adapters import foreign_lora
from tests.evaluation.harness_tasks import ROWS

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `harness`)")


@pytest.fixture(scope="module")
def results(loaded: tuple[Any, Any], definitions: Path) -> dict[str, TaskResult]:
    names = ["local_group", "local_written", "local_rolling"]
    found = evaluate_harness(*loaded, names, include=str(definitions), batch_size=4)
    return {result.task: result for result in found}


def ours(loaded: tuple[Any, Any]) -> list[list[float]]:
    """Log-likelihood of every option of every row, computed by quantkit."""
    model, tokenizer = loaded
    requests = [encode_pair(tokenizer, row["question"], f" {option}") for row in ROWS for option in row["options"]]
    found = [value for value, _ in loglikelihoods(model, requests, batch_size=4)]
    return [found[at : at + 4] for at in range(0, len(found), 4)]


def test_our_log_likelihood_accuracy_is_the_harness_s_row_by_row(
    loaded: tuple[Any, Any], results: dict[str, TaskResult]
) -> None:
    result = results["harness.local_choice"]
    chosen = [max(range(4), key=values.__getitem__) for values in ours(loaded)]
    assert [row.answer for row in result.rows] == [row["options"][at] for row, at in zip(ROWS, chosen, strict=True)]
    right = [at == row["gold"] for row, at in zip(ROWS, chosen, strict=True)]
    assert [row.correct for row in result.rows] == right
    assert result.main.value == pytest.approx(sum(right) / len(ROWS))
    normed = [
        max(range(4), key=lambda at, v=values, o=row["options"]: v[at] / len(o[at]))
        for row, values in zip(ROWS, ours(loaded), strict=True)
    ]
    assert result.scores["acc_norm"].value == pytest.approx(
        sum(at == row["gold"] for row, at in zip(ROWS, normed, strict=True)) / 12
    )
    assert [row.nll for row in result.rows] == pytest.approx(
        [-values[row["gold"]] for row, values in zip(ROWS, ours(loaded), strict=True)], abs=1e-4
    )


def test_perplexity_on_the_same_tokens_is_the_harness_s(loaded: tuple[Any, Any], results: dict[str, TaskResult]) -> None:
    model, tokenizer = loaded
    ids = [[tokenizer.bos_token_id, *tokenizer(row["question"])["input_ids"]] for row in ROWS]
    rows = [SimpleNamespace(input_ids=tokens, labels=tokens) for tokens in ids]
    losses = row_losses(model, rows, batch_size=4)
    tokens = sum(loss.all_tokens for loss in losses)
    theirs = sum(row.nll or 0.0 for row in results["harness.local_rolling"].rows)
    assert sum(row.nll_tokens for row in results["harness.local_rolling"].rows) == tokens
    assert math.exp(sum(loss.all_nll for loss in losses) / tokens) == pytest.approx(math.exp(theirs / tokens), rel=1e-3)


def test_a_choice_task_carries_interval_floors_and_lm_eval_s_own_numbers(results: dict[str, TaskResult]) -> None:
    result = results["harness.local_choice"]
    assert (result.metric, result.n, result.main.interval, result.main.coverage) == ("acc", 12, "wilson", 1.0)
    floors = {floor.name: floor.value for floor in result.main.floors}
    assert floors == pytest.approx({"constant": 3 / 12, "longest": 2 / 12, "majority": 6 / 12})
    assert result.settings["as_reported"]["acc,none"] == pytest.approx(result.main.value)
    assert "acc_norm_stderr,none" in result.settings["as_reported"]
    assert result.settings["task_version"] == 3.0
    assert result.settings["num_fewshot"] == 0
    assert result.settings["harness_version"] == require_harness()
    assert result.rows[3].gold == "13 coins"
    assert result.cost.generated_tokens == 0
    assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_generation_task_says_how_many_answers_could_be_read(results: dict[str, TaskResult]) -> None:
    result = results["harness.local_written"]
    assert result.metric == "exact_match,number"
    assert [floor.name for floor in result.main.floors] == ["empty", "majority", "echo"]
    assert result.main.coverage == pytest.approx(sum(row.answer is not None for row in result.rows) / 12)
    assert any(row.text for row in result.rows)
    assert all("=" not in row.text for row in result.rows)
    assert result.scores["empty_rate"].value == sum(not row.text.strip() for row in result.rows) / 12
    assert result.scores["parsed_rate"].value == pytest.approx(result.main.coverage)
    assert 0.0 <= result.scores["constant_rate"].value <= 1.0
    assert 12 <= result.cost.generated_tokens <= 12 * 12
    assert result.settings["generation_kwargs"]["max_gen_toks"] == 12


def test_perplexities_have_a_bootstrap_interval(results: dict[str, TaskResult]) -> None:
    score = results["harness.local_rolling"].scores["word_perplexity"]
    assert score.low < score.value < score.high
    assert (score.interval, score.higher_is_better) == ("bootstrap", False)


def test_a_group_is_lm_eval_s_aggregate_of_its_members(results: dict[str, TaskResult]) -> None:
    first, second = (results[f"harness.local_{name}"] for name in ("choice", "second"))
    group = results["harness.local_group"]
    assert group.main.value == pytest.approx((12 * first.main.value + 5 * second.main.value) / 17)
    assert (group.n, group.main.interval, len(group.rows)) == (17, "wilson", 17)
    assert group.settings["members"] == ["local_choice", "local_second"]
    assert group.main.best_floor is not None


def test_the_verb_runs_it_on_the_adapter_s_own_base_and_files_it_with_ours(
    tiny_model: Path, definitions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign_lora(tiny_model, tmp_path / "lora", std=0.05)
    arguments = ["--method", "QLORA", "--harness", "local_choice", "--harness-include", str(definitions)]
    arguments += ["--limit", "6", "--registry", str(tmp_path / "r"), "--json", "--num-fewshot", "2", "--apply-chat-template"]
    assert run_verb("evaluate", [str(tmp_path / "lora"), *arguments]) == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert (artifact["kind"], artifact["quantization"]["weights_dtype"]) == ("adapter", "nf4")
    filed = Registry(tmp_path / "r").results(artifact["artifact"])
    assert list(filed) == ["harness.local_choice"]
    result = TaskResult.from_dict(filed["harness.local_choice"])
    assert (result.n, result.settings["num_fewshot"], result.settings["apply_chat_template"]) == (6, 2, True)
