"""Scores and floors on rows small enough to count by hand."""

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.tasks import Example, MultipleChoiceLetter, NumericBoxed, guess_kind


def examples(*pairs: tuple[str, str]) -> tuple[Example, ...]:
    return tuple(
        Example(row=row, messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))
        for row, (question, answer) in enumerate(pairs)
    )


def numeric(*pairs: tuple[str, str]) -> NumericBoxed:
    return NumericBoxed(name="hand", source="hand.jsonl", fingerprint="0", examples=examples(*pairs))


def choice(*pairs: tuple[str, str]) -> MultipleChoiceLetter:
    return MultipleChoiceLetter(name="hand", source="hand.jsonl", fingerprint="0", examples=examples(*pairs))


FIVE = numeric(
    ("2 and 3, how many?", r"2+3=5 \boxed{5}"),
    ("5 less 0?", r"\boxed{5}"),
    ("4 times 6?", r"\boxed{24}"),
    ("1,000 and 8?", "1008.0"),
    (r"How much is \boxed{9}?", r"\boxed{9.0}"),
)


def test_gold_answers_come_from_the_box_or_from_a_plain_number() -> None:
    assert FIVE.gold == ("5", "5", "24", "1008", "9")


def test_floors_are_what_the_predictors_get_on_the_same_rows() -> None:
    floors = {floor.name: floor.value for floor in FIVE.score([""] * 5).floors}
    assert floors == {"empty": 0.0, "constant": 0.0, "majority": 0.4, "echo": 0.2, "sum": 0.8}


def test_unparsed_outputs_count_as_wrong_and_lower_the_coverage() -> None:
    score = FIVE.score([r"\boxed{5}", "5", r"\boxed{x}", r"so \boxed{1,008}", r"\boxed{9}"])
    assert score.value == 0.6
    assert score.coverage == 0.6
    assert score.n == 5
    assert score.is_floor


def test_the_boxed_rate_counts_boxes_and_the_parsed_rate_counts_numbers() -> None:
    rates = FIVE.rates([r"\boxed{5}", "5", r"\boxed{x}", r"\boxed{", ""])
    assert rates["boxed_rate"].value == 0.4
    assert rates["parsed_rate"].value == 0.2


@pytest.mark.parametrize(
    "outputs",
    [[""] * 40, ["!!!!"] * 40, [r"\boxed{0}"] * 40, [r"\boxed{}"] * 40, [r"\boxed{1} " * 9] * 40, ["1 2 3 4"] * 40],
)
def test_degenerate_predictors_are_marked(outputs: list[str]) -> None:
    task = numeric(*((f"{row} and {row + 1}?", f"\\boxed{{{row * 3 + 1}}}") for row in range(40)))
    assert task.score(outputs).is_floor


def test_a_model_that_can_do_it_is_not_marked() -> None:
    task = numeric(*((f"{row} and {row + 1}?", f"\\boxed{{{row * 3 + 1}}}") for row in range(40)))
    outputs = [task.write(gold) for gold in task.gold]
    assert not task.score(outputs[:30] + [""] * 10).is_floor


def test_an_answer_without_number_is_an_error_with_file_and_row() -> None:
    with pytest.raises(UsageError, match=r"hand.jsonl, row 1: the answer 'seven' is no number"):
        numeric(("a", "1"), ("b", "seven"))


def test_an_empty_task_is_refused() -> None:
    with pytest.raises(UsageError, match=r"hand\.jsonl: no rows to evaluate"):
        numeric()


def test_choices_are_scored_by_letter_with_majority_and_constant_floors() -> None:
    task = choice(("q A. x B. y", "B"), ("q", "B"), ("q", "A"), ("q", "D"))
    score = task.score(["B. because", "The answer is (C)", "A", "no idea"])
    assert (score.value, score.coverage) == (0.5, 0.75)
    assert {floor.name: floor.value for floor in score.floors} == {
        "empty": 0.0,
        "constant": 0.25,
        "majority": 0.5,
        "echo": 0.0,
    }


def test_labels_go_as_far_as_the_references() -> None:
    assert choice(("q", "A")).labels == "ABCD"
    assert choice(("q", "E")).labels == "ABCDE"
    assert choice(("q", "B"), ("q", "3")).labels == "ABCD12345"


def test_a_reference_that_is_no_label_is_an_error_with_file_and_row() -> None:
    with pytest.raises(UsageError, match=r"hand.jsonl, row 0: the answer '12' is no label from A to J or 1 to 5"):
        choice(("q", "12"))


def test_the_kind_is_read_off_the_references() -> None:
    assert guess_kind(examples(("q", "A"), ("q", "(D)"))) == "choice"
    assert guess_kind(examples(("q", "A"), ("q", "3"))) == "choice"
    assert guess_kind(examples(("q", "A"), ("q", "7"))) == "numeric"
    assert guess_kind(examples(("q", "1"), ("q", "3"))) == "numeric"
