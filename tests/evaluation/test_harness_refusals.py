"""What lm-eval is not run for is said with its reason: flags, definitions, models it would change, wrong numbers."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.evaluation.harness import evaluate_harness, filed_as
from quantkit.evaluation.harness.model import wrap
from quantkit.evaluation.harness.scores import judge
from quantkit.evaluation.results import TaskResult
from quantkit_tools.cli import run_verb
from tests.evaluation.harness_tasks import CHOICE

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `harness`)")


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
