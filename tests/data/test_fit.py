"""A built-in name before rows of another kind is refused; before its own it stays silent, whatever their spelling."""

from typing import Any

import pytest

from quantkit.config import RunConfig
from quantkit.data import DATASETS, Rows, read_data, to_conversations
from quantkit.data.fit import RULES, judged
from quantkit.errors import UsageError
from quantkit.preflight import ModelFacts, examine
from tests.data.conftest import Write

CHOICES = "Which can be separated? A. bread B. fruit salad C. ocean water D. soda"
SUMS = [{"question": f"What is {n} + {2 * n}?", "answer": float(3 * n)} for n in range(8, 18)]
LETTERS = [{"question": CHOICES, "answer": "ABCD"[n % 4]} for n in range(10)]
PASSAGE = [{"context": "Paris lies on the Seine.", "question": "Where does Paris lie?", "answer": "on the Seine"}]


def read_as(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return how each row fits a built-in data set that is put before them."""
    found = to_conversations(Rows(rows, "rows.jsonl", ""), task=DATASETS[name])
    return [fit for _, fit in judged(DATASETS[name], found, rows[0])]


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        (
            "arc",
            SUMS,
            "10 of 10 answers do not fit 'arc', which asks for the label of an option.*row 1: '24'. Put 'openmath' or",
        ),
        ("openmath", LETTERS, "10 of 10 answers do not fit 'openmath', which asks for a number.*row 1: 'A'. Put 'arc' or no"),
        ("squad", LETTERS, "which asks for words of the passage, or unanswerable.*Put 'arc' or no name before these rows"),
        ("squad", SUMS, "10 of 10 answers do not fit 'squad'.*'24'. Put 'openmath'"),
        ("openmath", [{"question": "is it", "answer": True}], "1 of 1 answers.*row 1: 'yes'. Put no name before"),
        ("openmath", [{"question": "is it", "passage": "It is.", "answer": True}], "row 1: 'yes'. Put 'boolq' or no name"),
        ("boolq", [{"question": "is it", "passage": "It is.", "answer": "1"}], "which asks for yes or no; first.*: '1'"),
        ("arc", [{"question": "Which is red?", "answer": "B"}], "the label of an option in the question; first.*'B'"),
    ],
)
def test_a_name_before_rows_of_another_kind_is_refused(name: str, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^rows.jsonl: .*{said}"):
        read_as(name, rows)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("openmath", SUMS),
        ("openmath", [{"question": "Solve.", "answer": text} for text in ("x+1", r"\frac{1}{2}", "x", r"so \boxed{3}", "30%")]),
        ("openmath", [{"question": "How many are true? 1. all 2. none", "answer": "2"}]),
        ("arc", LETTERS),
        ("arc", [{"question": "Which? (1) a (2) b", "answer": 2}, {"question": "Which?\na) x\nb) y", "answer": "b"}]),
        ("arc", [{"question": CHOICES, "answer": "The answer is (C)."}]),
        ("squad", PASSAGE),
        ("squad", [PASSAGE[0] | {"answer": "unanswerable"}]),
        ("boolq", [{"question": "is it", "passage": "It is.", "answer": answer} for answer in (True, "No", "true")]),
    ],
)
def test_rows_of_its_own_kind_fit(name: str, rows: list[dict[str, Any]]) -> None:
    assert set(read_as(name, rows)) == {"fits"}


def test_a_data_sets_own_columns_are_not_judged() -> None:
    assert read_as("openmath", [{"problem": "p", "generated_solution": "it is blue"}]) == []


def test_every_built_in_name_has_a_rule() -> None:
    assert set(RULES) == set(DATASETS)


def examined(tokenizer: Any, dataset: str) -> list[str]:
    read = read_data(dataset=dataset, tokenizer=tokenizer, max_length=256, on_bad_rows=None)
    found = examine(read, RunConfig(model_name_or_path="m", dataset_name=dataset), ModelFacts(vocab_size=512, positions=512))
    return [item.line for item in found.findings if item.check == "task"]


def test_preflight_warns_of_answers_that_are_hardly_what_the_name_asks_for(tokenizer: Any, write: Write) -> None:
    rows = [*SUMS, *({"question": f"Which colour has {n}?", "answer": "blue"} for n in range(3))]
    (line,) = examined(tokenizer, f"openmath:{write(rows)}")
    assert line.startswith("3 of 13 answers (23.1%) are hardly what openmath asks for (a number or an expression); first ")
    assert line.endswith(r"line 11: '\\boxed{blue}'. if these rows are no openmath rows, leave the name before the file out")
    assert examined(tokenizer, f"openmath:{write([*SUMS, rows[-1]])}") == []
    assert examined(tokenizer, write(rows)) == []
    paraphrased = [PASSAGE[0] | {"answer": "by a river"}]
    assert "are hardly what squad asks for" in examined(tokenizer, f"squad:{write(paraphrased)}")[0]
