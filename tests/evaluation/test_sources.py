"""Rows become tasks: which rows, under which prompt and which name."""

import json
from pathlib import Path

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.sources import read_tasks
from quantkit.evaluation.tasks import MultipleChoiceLetter, NumericBoxed


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(count: int) -> list[dict[str, object]]:
    return [{"question": f"{row} and 1?", "answer": float(row + 1)} for row in range(count)]


def test_without_data_the_two_generated_sets_are_asked() -> None:
    tasks = read_tasks()
    assert [(task.name, task.kind, len(task.examples)) for task in tasks] == [
        ("unseen_numbers", "numeric", 60),
        ("unseen_templates", "numeric", 60),
    ]
    assert all(turn["role"] != "system" for task in tasks for example in task.examples for turn in example.messages)


def test_float_answers_are_gold_without_their_point(tmp_path: Path) -> None:
    (task,) = read_tasks([write(tmp_path / "test.jsonl", sums(3))])
    assert isinstance(task, NumericBoxed)
    assert task.gold == ("1", "2", "3")
    assert task.name == "test"


def test_letters_make_a_choice_task(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"title": "t", "question": "Which? A. a B. b", "answer": letter} for letter in "AB"]
    (task,) = read_tasks([write(tmp_path / "arc-ish.jsonl", rows)])
    assert isinstance(task, MultipleChoiceLetter)


def test_a_built_in_name_brings_its_system_prompt_and_boxes_answers(tmp_path: Path) -> None:
    (task,) = read_tasks(["openmath:" + write(tmp_path / "test.jsonl", sums(2))])
    assert task.name == "openmath-test"
    assert task.examples[0].messages[0]["role"] == "system"
    assert task.examples[0].response == r"\boxed{1}"
    assert task.examples[0].question == "0 and 1?"


def test_an_explicit_system_prompt_wins_and_the_empty_one_means_none(tmp_path: Path) -> None:
    data = ["openmath:" + write(tmp_path / "test.jsonl", sums(2))]
    assert read_tasks(data, system_prompt="Be brief.")[0].examples[0].messages[0]["content"] == "Be brief."
    assert read_tasks(data, system_prompt="")[0].examples[0].messages[0]["role"] == "user"


def test_the_limit_draws_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    data = [write(tmp_path / "test.jsonl", sums(50))]
    one, same, other = (read_tasks(data, limit=10, seed=seed)[0] for seed in (1, 1, 2))
    rows = [example.row for example in one.examples]
    assert rows == sorted(rows)
    assert len(rows) == 10
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_the_fingerprint_is_of_questions_and_answers_not_of_prompts_or_places(tmp_path: Path) -> None:
    first = read_tasks([write(tmp_path / "a" / "test.jsonl", sums(5))])[0]
    moved = read_tasks([write(tmp_path / "b" / "other.jsonl", sums(5))], system_prompt="Hello")[0]
    changed = read_tasks([write(tmp_path / "c" / "test.jsonl", sums(6))])[0]
    assert first.fingerprint == moved.fingerprint != changed.fingerprint


def test_of_a_folder_the_held_out_file_is_asked(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", sums(9))
    write(tmp_path / "set" / "test.jsonl", sums(4))
    assert len(read_tasks([str(tmp_path / "set")])[0].examples) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "numerik"}, r"no task is called 'numerik'. Did you mean 'numeric'\?"),
        ({"limit": 0}, "limit is 0; at least one row is needed"),
        ({"data": ["owner/name"]}, "say which split to evaluate on, e.g. owner/name@test"),
        ({"data": ["nowhere.jsonl"]}, "there is no such file or folder"),
    ],
)
def test_what_cannot_be_read_is_an_error(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_tasks(**settings)  # type: ignore[arg-type]


def test_rows_of_plain_text_are_judged_by_their_tokens_and_hold_no_question(tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", [{"text": "Once upon a time"}])
    (task,) = read_tasks([path])
    assert (task.kind, task.examples[0].response) == ("perplexity", "Once upon a time")
    with pytest.raises(UsageError, match=r"text\.jsonl: rows of plain text hold no question; --task perplexity and divergence"):
        read_tasks([path], kind="numeric")


def test_a_forced_kind_that_does_not_fit_names_file_and_row(tmp_path: Path) -> None:
    path = write(tmp_path / "words.jsonl", [{"question": "Who?", "answer": "Nobody"}])
    with pytest.raises(UsageError, match=r"words\.jsonl, row 1: the answer 'Nobody' is no number"):
        read_tasks([path], kind="numeric")
