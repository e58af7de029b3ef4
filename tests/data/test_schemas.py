"""Columns become turns by one table; values become text by one rule."""

import datetime
from decimal import Decimal
from typing import Any

import pytest

from quantkit.data import DATASETS, Rows, dataset_info, to_conversations
from quantkit.data.findings import Findings, as_text
from quantkit.data.schemas import KINDS, kind_of
from quantkit.errors import UsageError


def turns(*rows: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    conversation = to_conversations(Rows(list(rows), "rows.jsonl", ""), **settings)[0]
    return [(turn["role"], turn["content"]) for turn in conversation.messages]


def asked_and_answered(prompt: str, response: str) -> list[tuple[str, str]]:
    return [("user", prompt), ("assistant", response)]


QA = {"question": "2+2?", "answer": "4"}


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]}, "p", "r"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "p"}]}, {"role": "model", "content": "r"}]},
            "p",
            "r",
        ),
        ({"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "r"}]}, "p", "r"),
        ({"prompt": "p", "completion": "r"}, "p", "r"),
        ({"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "r"}]}, "p", "r"),
        ({"instruction": "i", "input": "x", "output": "r"}, "i\n\nx", "r"),
        ({"instruction": "i", "input": "", "output": "r", "text": "i x r"}, "i", "r"),
        ({"instruction": "i", "output": "r"}, "i", "r"),
        ({"question": "q", "answer": "a", "context": "c"}, "c\n\nq", "a"),
        ({"question": "q", "answer": "a", "title": "t"}, "q", "a"),
        ({"question": "q", "passage": "p", "answer": True}, "p\n\nq", "yes"),
        ({"context": "c", "target": "t"}, "c", "t"),
        ({"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, "c\n\nq", "a"),
        ({"context": "c", "question": "q", "answers": {"text": [], "answer_start": []}}, "c\n\nq", "unanswerable"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "q\nA. x\nB. y", "B"),
        ({"problem": "p", "generated_solution": "so \\boxed{4}", "expected_answer": "4"}, "p", "so \\boxed{4}"),
        ({"problem": "p", "generated_solution": "so 4", "expected_answer": 4}, "p", "so 4 \\boxed{4}"),
    ],
)
def test_the_columns_decide_prompt_and_response(row: dict[str, Any], prompt: str, response: str) -> None:
    assert turns(row) == asked_and_answered(prompt, response)


def test_a_text_row_is_kept_whole() -> None:
    conversation = to_conversations(Rows([{"text": "Once upon"}], "r", ""))[0]
    assert (conversation.text, conversation.messages, conversation.response, conversation.key) == (
        "Once upon",
        [],
        "Once upon",
        "once upon",
    )


def test_the_system_turn_comes_first_wherever_it_stood() -> None:
    row = {"messages": [*({"role": r, "content": r} for r in ("user", "assistant", "system"))]}
    findings = Findings(str)
    assert [role for role, _ in turns(row, findings=findings)] == ["system", "user", "assistant"]
    assert findings.conversion_lines() == ["messages: 1 system turn moved to the front, from turn 3"]


def test_a_rows_own_system_turn_wins_over_the_setting_and_the_setting_over_the_task() -> None:
    own = {"messages": [*({"role": r, "content": r} for r in ("system", "user", "assistant"))]}
    assert turns(own, system_prompt="set")[0] == ("system", "system")
    assert turns(QA, system_prompt="set")[0] == ("system", "set")
    openmath = DATASETS["openmath"]
    assert turns(QA, task=openmath)[0] == ("system", openmath.system_prompt)
    assert turns(QA, task=openmath, system_prompt="set")[0] == ("system", "set")
    assert turns(QA, task=openmath, system_prompt="")[0] == ("user", "2+2?")


def test_assistant_turns_of_a_prompt_are_not_responses() -> None:
    prompt = [{"role": r, "content": r} for r in ("system", "user", "assistant", "user")]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "last"}]}
    assert to_conversations(Rows([row], "r", ""))[0].first_response == 4
    del prompt[0]
    assert to_conversations(Rows([row], "r", ""), system_prompt="s")[0].first_response == 4


def test_openmath_answers_are_boxed_once_and_said_to_be() -> None:
    findings = Findings(str)
    rows = Rows([{"question": "a", "answer": 19600.0}, {"question": "b", "answer": "so \\boxed{3}"}], "r", "")
    found = to_conversations(rows, task=DATASETS["openmath"], findings=findings)
    assert [item.response for item in found] == ["\\boxed{19600}", "so \\boxed{3}"]
    assert findings.conversion_lines() == [
        "answer: 1 number converted, 19600.0 → '19600'",
        "answer: 1 put into \\boxed{}, 19600 → \\boxed{19600}",
    ]
    assert turns(rows.rows[0]) == asked_and_answered("a", "19600")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1008.0, "1008"), (0.088, "0.088"), (-0.0, "0"), (1e-7, "0.0000001"), (1e16, "10000000000000000"), (16.67, "16.67"),
        (7, "7"), (True, "yes"), (False, "no"), (Decimal("2.50"), "2.5"), (" x ", " x "), ("1008.0", "1008.0"),
    ],
)  # fmt: skip
def test_values_become_text_by_a_stated_rule(value: Any, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "column 'answer': None is missing"),
        (float("nan"), "column 'answer': nan is not a finite number"),
        (Decimal("Infinity"), "is not a finite number"),
        (
            datetime.date(2026, 11, 1),
            r"column 'answer': datetime.date\(2026, 11, 1\) is date, for which there is no rule; store it as text",
        ),
        (b"4", "is bytes, for which"),
        (["4"], r"\['4'\] is list, for which"),
        ({"a": 1}, "is dict, for which"),
        ("", "column 'answer': '' is blank"),
        (" \n", "is blank"),
        ("\ud83d", "holds half of a surrogate pair"),
    ],
)
def test_values_without_a_rule_name_file_row_column_and_value(answer: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"rows.jsonl row 2, .*{said}.*on_bad_rows='drop'") as caught:
        turns(QA, QA | {"answer": answer})
    assert "\n" not in str(caught.value)


def test_a_missing_column_and_the_number_of_further_rows_are_said() -> None:
    with pytest.raises(UsageError, match=r"row 2, column 'answer': the row has only \['question'\] \(1 more unusable row\)\."):
        turns(QA, {"question": "?"}, {"question": "?"})


USER = {"role": "user", "content": "p"}
REPLY = {"role": "assistant", "content": "r"}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "'hello' is str, not a list of turns"),
        (["hello"], "turn 1 is 'hello', not an object"),
        ([USER, {"role": "asistant", "content": "r"}], r"turn 2 has the role 'asistant'. Did you mean 'assistant'\?"),
        ([USER, {"content": "r"}], "turn 2 has the role None. Known: system"),
        ([USER, {"role": "assistant", "content": None}], r"column 'messages\[2\].content': None is missing"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "is list, for which there is no rule"),
        ([USER, REPLY | {"tool_calls": [{}]}], "turn 2 calls tools"),
        ([USER], r"no assistant turn among \['user'\]; there is nothing to learn"),
        ([], r"no assistant turn among \[\]"),
        ([REPLY, USER, REPLY], "the conversation begins with the assistant"),
        ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER, REPLY], "2 system turns"),
    ],
)
def test_turns_that_cannot_be_read_are_named(messages: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        turns({"messages": messages})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": [USER], "completion": "r"},
            "column 'completion': it is str, prompt is list; both must be text or both lists",
        ),
        ({"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "E"}, r"'E' is none of the labels \['A'\]"),
        ({"question": "q", "choices": ["x"], "answerKey": "A"}, r"column 'choices': \['x'\] holds no list 'label'"),
        ({"context": "c", "question": "q", "answers": None}, "column 'answers': None holds no list 'text'"),
    ],
)
def test_nested_cells_that_cannot_be_read_are_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        turns(row)


def test_unknown_columns_list_the_known_kinds_and_suggest() -> None:
    with pytest.raises(
        UsageError,
        match=r"r: the columns \['qestion', 'answer'\] are not those of .*answer;.*'qestion': Did you mean 'question'\?",
    ):
        kind_of(["qestion", "answer"], "r")


def test_columns_that_fit_two_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"fit question/answer and context/target; keep the columns of one kind"):
        kind_of(["question", "answer", "context", "target"], "r")


def test_columns_that_are_not_the_named_data_sets_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"\['context', 'target'\] are not those of data set 'boolq': question\+passage\+answer\."
    ):
        kind_of(["context", "target"], "r", DATASETS["boolq"])


def test_the_table_of_built_in_names_fits_the_table_of_kinds() -> None:
    assert {kind for info in DATASETS.values() for kind in info.kinds} <= set(KINDS)
    assert dataset_info("arc").subset == "ARC-Challenge"
    with pytest.raises(
        UsageError, match=r"no built-in data set is called 'openmat'. Did you mean 'openmath'\? Known: openmath, squad"
    ):
        dataset_info("openmat")
