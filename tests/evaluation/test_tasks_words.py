"""Extractive answers, yes and no, labels and weighed options: scores, floors and refusals on rows counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.sources import read_tasks
from quantkit.evaluation.tasks import ChoiceLikelihood, Example, ExtractiveQA, LabelChoice, Option, YesNo, guess_kind


def example(question: str, answer: str, row: int = 1, **more: Any) -> Example:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(row=row, messages=turns, **more)


def task(kind: type[Any], *pairs: tuple[str, str], **more: Any) -> Any:
    rows = tuple(example(question, answer, row) for row, (question, answer) in enumerate(pairs, start=1))
    return kind(name="hand", source="hand.jsonl", fingerprint="0", examples=rows, **more)


def floors(score: Any) -> dict[str, float]:
    return {floor.name: floor.value for floor in score.floors}


PASSAGES = ExtractiveQA(
    name="squad",
    source="squad.jsonl",
    fingerprint="0",
    examples=(
        example("The big dog barked. Who?", "The big dog", 1, answers=("The big dog", "dog")),
        example("Nothing of it. When?", "unanswerable", 2, answers=("unanswerable",)),
        example("It rained in May 1901. When?", "May 1901", 3, answers=("May 1901", "in May 1901")),
        example("Still nothing. Why?", "unanswerable", 4, answers=("unanswerable",)),
    ),
)


def test_an_extracted_answer_is_right_if_any_gold_answer_is_it_after_normalisation() -> None:
    assert PASSAGES.correct(["a DOG!", "Unanswerable.", "1901", "the answer is unanswerable"]) == [True, True, False, False]
    assert PASSAGES.values(["a big dog", "", "1901", "May"]) == [1.0, 0.0, pytest.approx(2 / 3), 0.0]


def test_exact_match_and_f1_stand_apart_for_rows_with_and_without_answer() -> None:
    scores = PASSAGES.scores(["big dog", "unanswerable", "1901", "!!!!"], seed=0)
    said = {name: (score.value, score.n, score.coverage) for name, score in scores.items()}
    assert said == {
        "exact_match": (0.5, 4, 0.75),
        "parsed_rate": (0.75, 4, 1.0),
        "f1": (pytest.approx((1 + 1 + 2 / 3) / 4), 4, 0.75),
        "has_answer_exact_match": (0.5, 2, 0.5),
        "has_answer_f1": (pytest.approx((1 + 2 / 3) / 2), 2, 0.5),
        "no_answer_exact_match": (0.5, 2, 0.25),
        "abstention_rate": (0.25, 4, 1.0),
    }
    assert floors(scores["exact_match"]) == {"abstain": 0.5, "empty": 0, "constant": 0, "majority": 0.5, "echo": 0}
    assert floors(scores["has_answer_f1"])["abstain"] == 0.0
    assert floors(scores["no_answer_exact_match"])["abstain"] == 1.0


@pytest.mark.parametrize("output", ["", "!!!!", "the", " \n", "No answer"])
def test_silence_and_other_words_are_no_abstention(output: str) -> None:
    score = PASSAGES.score([output] * 4)
    assert (score.value, score.is_floor) == (0.0, True)


def test_one_model_that_always_abstains_is_at_the_floor() -> None:
    assert PASSAGES.score(["unanswerable"] * 4).is_floor


def test_several_gold_answers_of_squad_rows_are_all_accepted(tmp_path: Path) -> None:
    rows = [
        {"context": "Ann ate.", "question": "Who?", "answers": {"text": ["Ann", "Ann ate", "Ann"], "answer_start": [0, 0, 0]}},
        {"context": "Ann ate.", "question": "Why?", "answers": {"text": [], "answer_start": []}},
    ]
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for data in (str(path), f"squad:{path}"):
        (found,) = read_tasks([data])
        assert isinstance(found, ExtractiveQA)
        assert found.accepted == (("ann", "ann ate"), ("unanswerable",))
        assert found.examples[0].messages[0]["role"] == ("system" if data.startswith("squad:") else "user")


def test_bool_columns_are_yes_and_no(tmp_path: Path) -> None:
    path = tmp_path / "boolq.jsonl"
    rows = [{"question": "is it?", "passage": "It is.", "answer": value} for value in (True, False, True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = read_tasks([str(path)])
    assert isinstance(found, YesNo)
    assert found.gold == ("yes", "no", "yes")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, it is.", "yes"),
        ("no", "no"),
        ("True", "yes"),
        ("The answer is: **No**.", "no"),
        ("Yes, there is no doubt", "yes"),
        ("There is no doubt", None),
        ("maybe", None),
        ("yesterday", None),
        (r"\boxed{no}", "no"),
        ("", None),
    ],
)
def test_yes_and_no_are_begun_with_or_stated(text: str, answer: str | None) -> None:
    assert task(YesNo, ("is it?", "yes")).parse(text) == answer


def test_yes_and_no_have_macro_f1_and_floors() -> None:
    scores = task(YesNo, *[("is it?", "yes")] * 3, ("is it?", "no")).scores(["yes", "yes", "no", "no"], seed=0)
    assert scores["exact_match"].value == 0.75
    assert scores["macro_f1"].value == pytest.approx((2 * 2 / (3 + 2) + 2 * 1 / (1 + 2)) / 2)
    assert floors(scores["exact_match"]) == {"empty": 0, "constant": 0.75, "majority": 0.75, "echo": 0}
    assert floors(scores["macro_f1"])["majority"] == pytest.approx((6 / 7) / 2)


MOODS = task(LabelChoice, *[("What is the mood {bad/good}?", mood) for mood in ("Good", "bad.", "good", "good", "bad", "good")])


def test_labels_are_scored_by_accuracy_and_macro_f1_with_an_interval() -> None:
    scores = MOODS.scores(["good", "bad", "The mood is good", "Good.", "good", "hard to say"], seed=0)
    assert scores["exact_match"].value == pytest.approx(4 / 6)
    f1 = scores["macro_f1"]
    assert f1.value == pytest.approx((2 * 3 / (4 + 4) + 2 * 1 / (2 + 1)) / 2)
    assert f1.low < f1.value < f1.high
    assert (f1.interval, f1.n, f1.coverage) == ("bootstrap", 6, pytest.approx(5 / 6))
    assert floors(f1) == {"empty": 0, "constant": pytest.approx(0.25), "majority": pytest.approx(0.4), "echo": 0}
    assert MOODS.score(["good"] * 6).is_floor
    none = MOODS.scores(["hm"] * 6, seed=0)["macro_f1"]
    assert (none.value, none.high > 0.3, none.interval) == (0.0, True, "wilson")


def test_the_label_set_is_that_of_all_rows_not_of_those_asked(tmp_path: Path) -> None:
    path = tmp_path / "fin.jsonl"
    moods = ["positive", "negative", "neutral"] * 4
    path.write_text("".join(json.dumps({"context": f"Share {n}?", "target": mood}) + "\n" for n, mood in enumerate(moods)))
    (found,) = read_tasks([str(path)], limit=2)
    assert isinstance(found, LabelChoice)
    assert found.known == ("negative", "neutral", "positive")
    assert len(found.examples) == 2


@pytest.mark.parametrize(
    ("kind", "answer", "said"),
    [
        (YesNo, "perhaps", "row 1: the answer 'perhaps' is neither yes nor no; fix the row or choose another --task"),
        (LabelChoice, "!?", "row 1: the answer '!\\?' is no label"),
    ],
)
def test_a_reference_that_does_not_fit_is_an_error_with_its_row(kind: type[Any], answer: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        task(kind, ("q", answer))


def test_a_reference_outside_the_label_set_names_the_set() -> None:
    with pytest.raises(UsageError, match="the answer 'odd' is none of the labels bad, good"):
        task(LabelChoice, ("q", "odd"), labels=("bad", "good"))


STARS = "Which star? A. the sun B. a very distant star C. Mars"


def test_options_come_from_the_question_or_from_the_columns() -> None:
    found = task(ChoiceLikelihood, (STARS, "A"))
    assert found.choices == ((Option("A", "the sun"), Option("B", "a very distant star"), Option("C", "Mars")),)
    assert found.settings() == {"continuation": "text"}
    given = (Option("1", "sun"), Option("2", "Mars"))
    one = ChoiceLikelihood(
        name="arc", source="arc", fingerprint="0", examples=(example("Which star?", "1", options=given), example("q", "A", 2))
    )
    assert one.weighs == "label"
    assert one.choices[0] == (Option("1"), Option("2"))
    assert [option.label for option in one.choices[1]] == list("ABCD12345")


def test_options_are_chosen_by_sum_and_per_character() -> None:
    found = task(ChoiceLikelihood, (STARS, "B"))
    likelihoods = [[-4.0, -9.0, -3.0]]
    assert found.chosen(likelihoods) == ["C"]
    assert found.chosen(likelihoods, per_character=True) == ["B"]
    scores = found.likelihood_scores(likelihoods)
    assert (scores["exact_match"].value, scores["exact_match_norm"].value) == (0.0, 1.0)
    assert floors(scores["exact_match"]) == {"empty": 0, "constant": 0, "majority": 1, "echo": 0, "first": 0, "longest": 1}


def test_labels_are_weighed_on_demand_and_have_no_score_per_character() -> None:
    found = task(ChoiceLikelihood, (STARS, "B"), continuation="label")
    assert found.settings() == {"continuation": "label"}
    scores = found.likelihood_scores([[-4.0, -1.0, -3.0]])
    assert set(scores) == {"exact_match"}
    assert set(floors(scores["exact_match"])) == {"empty", "constant", "majority", "echo", "first"}


def test_texts_that_are_not_there_cannot_be_weighed() -> None:
    with pytest.raises(UsageError, match="row 2: the question offers no option 'D' with a text after its label"):
        task(ChoiceLikelihood, (STARS, "B"), (STARS, "D"), continuation="text")


def test_arcs_columns_are_options_with_texts(tmp_path: Path) -> None:
    row = {"question": "Which star?", "choices": {"text": ["sun", "Mars"], "label": ["A", "B"]}, "answerKey": "A"}
    path = tmp_path / "arc.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_tasks([f"arc:{path}"], kind="choice-likelihood")
    assert isinstance(found, ChoiceLikelihood)
    assert found.choices == ((Option("A", "sun"), Option("B", "Mars")),)
    assert read_tasks([f"arc:{path}"])[0].kind == "choice"


def test_the_kind_is_read_off_words_and_columns() -> None:
    assert guess_kind([example("q", text) for text in ("yes", "No", "true")]) == "yesno"
    assert guess_kind([example("q", text) for text in ("up", "down", "up", "up", "down", "up")]) == "label"
    assert guess_kind([example("q", text) for text in ("up", "down")]) == "numeric"
    assert guess_kind([example("q", "Paris", answers=("Paris",))]) == "qa"
    assert guess_kind([Example(row=1, messages=(), text="Once")]) == "perplexity"
