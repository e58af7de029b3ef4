"""Which answer a text gives: the last box, one spelling per number, labels that were meant as choices."""

from decimal import Decimal

import pytest

from quantkit.evaluation.answers import canonical_number, choice_label, last_boxed, lettered_options, numbers_in


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"3+4=7 \boxed{7}", "7"),
        (r"\boxed{1} then \boxed{ 2 }", "2"),
        (r"\boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        (r"\boxed {\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{5} and then \boxed{never closed", "5"),
        (r"\boxed{}", ""),
        ("boxed{7}", None),
        ("", None),
    ],
)
def test_the_last_closed_box_counts(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1008.0", "1008"),
        ("1,008.0", "1008"),
        ("1{,}008", None),
        ("10,08", None),
        ("-0.0", "0"),
        ("−5", "-5"),
        ("+5", "5"),
        ("007", "7"),
        (".5", "0.5"),
        ("16.670", "16.67"),
        ("1e3", "1000"),
        (r"\$1,200\!", "1200"),
        (r"50\%", "50"),
        (r"12\text{ apples}", "12"),
        (r"90^\circ", "90"),
        ("7.", "7"),
        ("3/4", "3/4"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{3}{4}", "-3/4"),
        ("6/8", "6/8"),
        ("x + 1", None),
        ("seven", None),
        ("nan", None),
        ("inf", None),
        ("1e999999999", None),
        ("9" * 65, None),
        ("", None),
    ],
)
def test_every_number_has_one_spelling(text: str, number: str | None) -> None:
    assert canonical_number(text) == number


def test_numbers_that_stand_alone_are_found_in_a_question() -> None:
    text = "Anna has 1,200 coins, gives away -3 and 4.5, reads Q4 and 2nd, then 7."
    assert numbers_in(text) == [Decimal(1200), Decimal(-3), Decimal("4.5"), Decimal(7)]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        (" (B) because", "B"),
        ("**D**", "D"),
        ("The answer is A. Not answer: B", "B"),
        (r"A. no, \boxed{C}", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"A. \boxed{none}", None),
        ("A star is born", None),
        ("3. because", None),
        ("E.", None),
        ("I think so", None),
        ("Both A and B", None),
        ("", None),
    ],
)
def test_a_letter_counts_only_where_it_is_a_choice(text: str, letter: str | None) -> None:
    assert choice_label(text, "ABCD") == letter


def test_digits_are_labels_where_options_are_numbered() -> None:
    assert choice_label("The answer is 3.", "ABCD12345") == "3"
    assert choice_label("30 degrees", "ABCD12345") is None


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Which? A. the sun B. a star\nC. Mars", [("A", "the sun"), ("B", "a star"), ("C", "Mars")]),
        ("Which?\n(A) one\n(B) two", [("A", "one"), ("B", "two")]),
        ("Which? 1. up 2. down", [("1", "up"), ("2", "down")]),
        ("In plan A. they ran. Why? A. fear B. fun C. duty", [("A", "fear"), ("B", "fun"), ("C", "duty")]),
        ("A. only one", []),
        ("B. no A before C. it", []),
        ("A. B. nothing between", []),
        ("no options at all", []),
    ],
)
def test_options_are_read_off_a_question_that_lists_them(question: str, found: list[tuple[str, str]]) -> None:
    assert [(option.label, option.text) for option in lettered_options(question)] == found
