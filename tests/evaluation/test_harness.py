"""Does lm-eval run on the very model that was loaded, and do its results say what ours say? Tasks here are local files."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit import console
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.evaluation.harness import evaluate_harness, filed_as
from quantkit.evaluation.harness.model import require_harness, wrap
from quantkit.evaluation.harness.scores import judge
from quantkit.evaluation.likelihood import encode_pair, loglikelihoods
from quantkit.evaluation.perplexity import row_losses
from quantkit.evaluation.results import TaskResult
from quantkit_registry.store import Registry
from quantkit_tools.cli import run_verb

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `harness`)")

ROWS = [
    {"question": f"Tom has {a} coins and finds {b} more. How many?", "options": options, "gold": gold, "answer": options[gold]}
    for gold, (a, b) in zip([0, 1, 1, 2, 0, 1, 3, 1, 2, 1, 0, 1], [(n, n + 3) for n in range(2, 14)], strict=True)
    for options in [[str(2 * a + 3 + at - gold) + (" coins" if at == 2 else "") for at in range(4)]]
]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3.0}}
"""
WRITTEN = """
task: local_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "<|im_start|>user\\n{{{{question}}}}<|im_end|>\\n<|im_start|>assistant\\n"
doc_to_target: answer
generation_kwargs: {{until: ["="], max_gen_toks: 12, do_sample: false}}
filter_list: [{{name: number, filter: [{{function: regex, regex_pattern: "(\\\\d+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
num_fewshot: 0
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""
GROUP = "group: local_group\ntask: [local_choice, local_second]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"


@pytest.fixture(autouse=True)
def human_text_on_stdout() -> Iterator[None]:
    yield
    console.use_stdout()


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of task definitions, as a user would keep one."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("first", ROWS), ("second", ROWS[:5])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data": folder / "first.jsonl", "cache": folder / "cache"}
    (folder / "choice.yaml").write_text(CHOICE.format(name="local_choice", **files))
    (folder / "second.yaml").write_text(CHOICE.format(name="local_second", **files | {"data": folder / "second.jsonl"}))
    (folder / "written.yaml").write_text(WRITTEN.format(**files))
    (folder / "rolling.yaml").write_text(ROLLING.format(**files))
    (folder / "group.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)


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
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(tmp_path / "lora")
    arguments = ["--method", "QLORA", "--harness", "local_choice", "--harness-include", str(definitions)]
    arguments += ["--limit", "6", "--registry", str(tmp_path / "r"), "--json", "--num-fewshot", "2", "--apply-chat-template"]
    assert run_verb("evaluate", [str(tmp_path / "lora"), *arguments]) == 0
    (artifact,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert (artifact["kind"], artifact["quantization"]["weights_dtype"]) == ("adapter", "nf4")
    filed = Registry(tmp_path / "r").results(artifact["artifact"])
    assert list(filed) == ["harness.local_choice"]
    result = TaskResult.from_dict(filed["harness.local_choice"])
    assert (result.n, result.settings["num_fewshot"], result.settings["apply_chat_template"]) == (6, 2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-fewshot", "3"], "--num-fewshot is for tasks of lm-eval; --harness names them"),
        (["--harness", ","], "--harness names no task"),
        (["--harness", "local_choice", "--pending"], "--harness does not go with --pending"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb("evaluate", [str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_run_as_asked_is_refused_with_a_reason(loaded: tuple[Any, Any], definitions: Path) -> None:
    def refused(names: list[str], **settings: Any) -> str:
        with pytest.raises(UsageError) as caught:
            evaluate_harness(*loaded, names, **{"include": str(definitions)} | settings)
        return str(caught.value)

    assert "its definition fixes num_fewshot to 0; leave out --num-fewshot 3" in refused(["local_written"], num_fewshot=3)
    assert "num_fewshot is -1" in refused(["local_choice"], num_fewshot=-1)
    assert "limit is 0; at least one row is needed" in refused(["local_choice"], limit=0)
    assert "no such folder" in refused(["local_choice"], include=str(definitions / "nothing"))
    (definitions / "broken.yaml").write_text(CHOICE.format(name="broken", data="gone.jsonl", cache=definitions / "cache"))
    assert "a definition or its data cannot be loaded: FileNotFoundError" in refused(["broken"])


def test_a_misspelt_task_is_named_with_what_was_meant(monkeypatch: pytest.MonkeyPatch, definitions: Path) -> None:
    from quantkit.evaluation.harness import tasks

    class Few:
        """Reading all of lm-eval's definitions takes most of a minute."""

        def __init__(self, **_: Any) -> None:
            self.task_index = {"arc_challenge": 1, "arc_easy": 1}
            self.all_tasks = list(self.task_index)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Few)
    with pytest.raises(UsageError, match=r"no task, group or tag 'arc_challange'\. Did you mean 'arc_challenge'"):
        tasks.load_tasks(["arc_challange"])
    assert [folder.name for folder in tasks._folders_defining(["arc_challenge"]) or []] == ["arc"]
    with pytest.raises(UsageError, match="runs code that the model writes"):
        tasks._prepare("x", SimpleNamespace(UNSAFE_CODE=True), None, 0)
    with pytest.raises(UsageError, match="shows images or sounds"):
        tasks._prepare("x", SimpleNamespace(MULTIMODAL=True), None, 0)


def test_a_model_that_wrapping_would_change_is_not_evaluated(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded

    def tie_weights(*_: Any, **__: Any) -> None:
        model.model.norm.weight.data.mul_(1.5)

    monkeypatch.setattr(model, "tie_weights", tie_weights)
    try:
        with pytest.raises(VerificationError, match="lm-eval changed the model it was given"):
            wrap(model, tokenizer, batch_size=1)
    finally:
        model.model.norm.weight.data.div_(1.5)


def test_numbers_that_do_not_follow_from_the_rows_are_refused() -> None:
    task = SimpleNamespace(task_name="t", OUTPUT_TYPE="other", aggregation=dict, higher_is_better=dict)
    sample = {"filter": "none", "metrics": ["acc"], "acc": 1.0, "doc_id": 0, "target": "x"}
    with pytest.raises(VerificationError, match=r"lm-eval task t: acc is reported as 0.5, its rows give 1.0"):
        judge(task, [sample], {"acc,none": 0.5}, seed=0, tokens_in=lambda *_: 1)
    with pytest.raises(VerificationError, match="lm-eval task t reported no number"):
        judge(task, [sample], {"acc,none": "N/A"}, seed=0, tokens_in=lambda *_: 1)


def test_without_lm_eval_one_line_says_how_to_get_it(
    loaded: tuple[Any, Any], definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UsageError, match=r"lm-eval is not installed, which --harness runs; pip install 'quantkit\[harness\]'"):
        evaluate_harness(*loaded, ["local_choice"])


def test_a_tokenizer_without_a_template_cannot_apply_one(loaded: tuple[Any, Any]) -> None:
    bare = SimpleNamespace(chat_template=None)
    with pytest.raises(UsageError, match="the model's tokenizer has no chat template; leave the flag out"):
        evaluate_harness(loaded[0], bare, ["local_choice"], apply_chat_template=True)


def test_a_task_that_fails_while_it_runs_is_named_and_earlier_ones_are_kept(
    loaded: tuple[Any, Any], definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = sys.modules["lm_eval.evaluator"]
    works = evaluator.evaluate  # type: ignore[attr-defined]

    def fails(**settings: Any) -> Any:
        if "local_choice" in settings["task_dict"]["tasks"]:
            raise ValueError("no docs")
        return works(**settings)

    monkeypatch.setattr(evaluator, "evaluate", fails)
    kept: list[TaskResult] = []
    with pytest.raises(QuantkitError, match="lm-eval task local_choice failed: ValueError: no docs"):
        evaluate_harness(*loaded, ["local_second", "local_choice"], include=str(definitions), on_result=kept.append)
    assert [result.task for result in kept] == ["harness.local_second"]
    assert filed_as("local_choice") == "harness.local_choice"
