"""Each way an answer can be none is told apart, and healthy text of the same look is left alone."""

import random

import pytest

from quantkit.evaluation.degeneration import constant_rate, degeneration_rates, ends_in_loop, is_echo, is_loop
from quantkit.evaluation.generation import Generation
from quantkit.evaluation.gibberish import Language
from quantkit.evaluation.statistics import Score
from tests.evaluation.garbage import prose, tasks

NUMERIC, CHOICE, QA, YESNO = tasks()
ENGLISH = Language.of([example.question for task in (NUMERIC, QA) for example in task.examples])


def answers(texts: list[str]) -> list[Generation]:
    return [Generation(text, tuple(range(len(text.split()) + 1)), True) for text in texts]


@pytest.mark.parametrize("blank", ["", "  \n", "\u200b\ufeff \u2060"])
def test_text_that_nobody_sees_is_empty(blank: str) -> None:
    assert degeneration_rates(answers([blank] * 60), NUMERIC)["empty_rate"].value == 1.0


def test_rates_that_need_the_question_come_with_the_task_only() -> None:
    told = degeneration_rates(answers(["7"] * 60))
    assert list(told) == ["empty_rate", "repetition_rate", "stop_rate"]
    assert {"constant_rate", "echo_rate", "gibberish_rate"} <= degeneration_rates(answers(["7"] * 60), NUMERIC).keys()


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("and so on " * 8, True),
        ("=" * 80, True),
        ("first this\n" * 6, True),
        ("1/3 = 0.33333333333333333333", False),
        ("| a | b |\n|---|---|\n| 1 | 2 |", False),
        ("no no no, that is not right", False),
    ],
)
def test_loops_of_characters_are_told_whatever_the_tokens(text: str, loops: bool) -> None:
    assert ends_in_loop(text) is loops
    assert is_loop(Generation(text, tuple(range(40)), False)) is loops


def constant(texts: list[str], golds: list[str]) -> Score:
    return constant_rate(texts, lambda text: text or None, lambda said: [a == b for a, b in zip(said, golds, strict=True)])


def test_the_commonest_answer_counts_only_where_it_is_wrong() -> None:
    golds = ["yes"] * 62 + ["no"] * 38
    healthy = constant(["yes"] * 58 + ["no"] * 4 + ["yes"] * 4 + ["no"] * 34, golds)
    assert (healthy.value, healthy.n, healthy.coverage) == (pytest.approx(4 / 38), 38, 0.38)
    assert constant(["yes"] * 100, golds).value == 1.0


def test_rows_that_cannot_tell_are_not_judged() -> None:
    only_yes = constant(["yes"] * 10, ["yes"] * 10)
    assert (only_yes.value, only_yes.coverage) == (0.0, 0.0)
    silent = constant([""] * 10, ["yes"] * 10)
    assert (silent.value, silent.coverage) == (0.0, 0.0)


QUESTION = "Anna has 12 apples and buys 7 more at the market in the morning. How many apples does Anna have now?"


@pytest.mark.parametrize(
    ("text", "stopped", "echo"),
    [
        (QUESTION, True, True),
        (QUESTION.upper(), True, True),
        (f"Q: {QUESTION}", True, True),
        (QUESTION[:30], True, False),
        ("12 apples", True, False),
        ("Anna has 12 apples and buys 7 more, so she has 12 + 7 = 19 apples. \\boxed{19}", True, False),
    ],
)
def test_an_echo_is_the_question_and_no_span_of_it(text: str, stopped: bool, echo: bool) -> None:
    assert is_echo(Generation(text, (), stopped), QUESTION) is echo


def test_an_echo_that_was_cut_off_is_one() -> None:
    question = QA.examples[0].question
    start = " ".join(question.split()[:30])
    assert is_echo(Generation(start, (), False), question)
    assert not is_echo(Generation(start, (), True), question)


def test_a_right_answer_is_no_echo() -> None:
    texts = [f"{example.question} \\boxed{{{gold}}}" for example, gold in zip(NUMERIC.examples, NUMERIC.gold, strict=True)]
    assert degeneration_rates(answers(texts), NUMERIC)["echo_rate"].value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "!!!! ??? ...",
        "\ufffd\ufffd ab",
        "a\x00b\x01c",
        "Сколько яблок у Анны теперь",
        "qzx vbnw kjhg trpl mnbv zxcq wrty plkj hgfd",
        "th qu br fo ju ing ment ous tion ly er ap bo gr st",
    ],
)
def test_gibberish_is_called_so(text: str) -> None:
    assert ENGLISH.is_gibberish(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "42",
        "\\boxed{\\frac{3}{4}}",
        "\\[ x^2 + \\alpha y = \\sqrt{16} \\]",
        "Kyoto",
        "naïve café 😀",
        "Anna has 12 apples and David has 7, so they have 19 apples in all.",
        "π ≈ 3.14159, so the area is π·r² ≈ 12.6 cm²",
    ],
)
def test_short_and_unusual_but_healthy_text_is_no_gibberish(text: str) -> None:
    assert not ENGLISH.is_gibberish(text)


def test_fluent_english_is_no_gibberish_and_its_words_at_random_are() -> None:
    fluent, words = prose()
    chance = random.Random(0)
    assert sum(map(ENGLISH.is_gibberish, fluent)) <= 0.02 * len(fluent)
    salad = [" ".join(chance.choices(words, k=25)) for _ in range(200)]
    assert sum(map(ENGLISH.is_gibberish, salad)) >= 0.95 * len(salad)


def test_other_languages_are_judged_by_their_own_words() -> None:
    german = Language.of(["Wie viele Eier sind in der Kiste, und wie viele sind in dem Korb auf dem Tisch?"])
    assert not german.is_gibberish("In der Kiste sind drei Eier, und in dem Korb sind vier Eier mehr.")
    chinese = Language.of(["盒子里有多少个鸡蛋？桌子上的篮子里有多少个鸡蛋？"])
    assert not chinese.is_gibberish("盒子里有三个鸡蛋，篮子里有四个。")
    assert chinese.is_gibberish("Это совсем другой язык и ответ")
