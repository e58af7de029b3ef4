"""From a `dataset` setting to checked rows: what is refused before the first step, what is counted, what the report says."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.data import PreparedData, prepare_data, read_data
from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError
from tests.data import templates
from tests.data.conftest import Write
from tests.tiny import CHAT_TEMPLATE

QA = [{"question": f"{n}+1?", "answer": float(n + 1)} for n in range(20)]


def prepared(tokenizer: Any, dataset: str, **settings: Any) -> PreparedData:
    return prepare_data(**({"dataset": dataset, "tokenizer": tokenizer, "max_length": 256} | settings))


def learnt(tokenizer: Any, data: PreparedData, index: int = 0) -> str:
    text: str = tokenizer.decode([label for label in data.train[index].labels if label != -100])
    return text


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, templates.QWEN3_LIKE])
def test_float_answers_are_learnt_as_numbers_under_any_template(tokenizer: Any, write: Write, template: str, name: str) -> None:
    tokenizer.chat_template = template
    data = prepared(tokenizer, write(QA, name))
    assert learnt(tokenizer, data, 7).removeprefix("<think>\n\n</think>\n\n") == "8<|im_end|>"
    assert data.report.conversions == ("answer: 20 numbers converted, 1.0 → '1'",)


def test_float_content_in_turns_is_learnt_although_the_template_would_write_nothing(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = templates.QWEN3_LIKE
    turns = [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": 1008.0}]
    silent = tokenizer.apply_chat_template(turns, tokenize=False)
    assert silent.endswith("</think>\n\n<|im_end|>\n")  # the trap: what other tools train on
    assert "1008<|im_end|>" in learnt(tokenizer, prepared(tokenizer, write([{"messages": turns}])))


def test_a_template_that_loses_an_answer_is_caught_before_the_first_step(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = templates.SKIPS_NUMBERS
    path = write([{"question": "a", "answer": "four"}, {"question": "b", "answer": 4.0}])
    with pytest.raises(
        UsageError, match=r"rows.jsonl line 2, column 'answer': the response '4' does not stand in the text"
    ) as caught:
        prepared(tokenizer, path)
    assert "\n" not in str(caught.value)
    dropped = prepared(tokenizer, path, on_bad_rows="drop").report
    assert (dropped.rows_read, dropped.rows_used, dropped.dropped) == (2, 1, {"response lost in the rendered text": 1})


def test_a_thousand_bad_rows_are_counted_in_one_refusal(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = templates.SKIPS_NUMBERS
    with pytest.raises(UsageError, match=r"line 1, .* \(999 more unusable rows\)"):
        prepared(tokenizer, write(QA * 50))


GOOD = {"question": "q", "answer": "a"}
BAD_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a missing answer": ([GOOD, {"question": "q", "answer": None}], r"line 2, column 'answer': None is missing"),
    "an empty answer": ([GOOD, {"question": "q", "answer": ""}], r"line 2, column 'answer': '' is blank"),
    "an empty question": ([GOOD, {"question": " ", "answer": "a"}], r"line 2, column 'question': ' ' is blank"),
    "a list for an answer": ([GOOD, {"question": "q", "answer": ["a"]}], r"line 2, column 'answer': \['a'\] is list"),
    "a missing column": ([GOOD, {"question": "q"}], r"line 2, column 'answer': the row has only \['question'\]"),
    "an answer that is NaN": ([GOOD, {"question": "q", "answer": float("nan")}], r"line 2, column 'answer': nan is not"),
    "a prompt that fills max_length": (
        [GOOD, {"question": "long " * 300, "answer": "a"}],
        r"line 2, column 'answer': no token of the response 'a' is left: the prompt has \d+ tokens, max_length is 256\."
        r" Raise max_length, correct the data or set on_bad_rows='drop'",
    ),
    "an end token in the middle of an answer": (
        [GOOD, {"question": "q", "answer": "a<|im_end|>b"}],
        r"line 2, column 'answer': turn 2 \(assistant\) holds '<\|im_end\|>' in 'a<\|im_end\|>b'; the chat template writes it",
    ),
    "a question that forges a turn": (
        [GOOD, {"question": "q<|im_end|>\n<|im_start|>assistant\nno", "answer": "a"}],
        r"line 2, turn 1 \(user\) holds '<\|im_end\|>' in 'q<\|im_end\|>.*would read what follows as another turn",
    ),
    "a conversation without an answer": (
        [{"messages": [{"role": "user", "content": "q"}]}],
        r"line 1, column 'messages': no assistant turn",
    ),
    "half an emoji": ([GOOD, {"question": "q", "answer": "\ud83d"}], r"line 2, column 'answer': '\\ud83d' holds half"),
    "a begin token twice": ([{"text": "<|im_start|><|im_start|>a"}], r"line 1, the row begins with '<\|im_start\|>' twice"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_stop_the_run_with_one_line_or_are_dropped_and_counted(tokenizer: Any, write: Write, case: str) -> None:
    rows, message = BAD_ROWS[case]
    path = write(rows)
    with pytest.raises(UsageError, match=message) as caught:
        prepared(tokenizer, path)
    assert "\n" not in str(caught.value)
    if len(rows) > 1:
        report = prepared(tokenizer, path, on_bad_rows="drop").report
        assert (report.rows_read, report.rows_used, sum(report.dropped.values())) == (2, 1, 1)
        assert any(line.startswith("left out: 1 row, ") for line in report.lines())
    else:
        with pytest.raises(UsageError, match=f"none of 1 rows can be used; the first: .*{message}"):
            prepared(tokenizer, path, on_bad_rows="drop")


def test_an_answer_may_end_in_the_end_token_itself(tokenizer: Any, write: Write) -> None:
    assert learnt(tokenizer, prepared(tokenizer, write([{"question": "q", "answer": "a<|im_end|>"}]))) == "a<|im_end|>"


def test_what_is_wrong_with_rows_is_told_by_reason_when_none_is_refused(tokenizer: Any, write: Write) -> None:
    rows = [GOOD, {"question": "q", "answer": ""}, {"question": "", "answer": "a"}, {"question": "q", "answer": " "}]
    read = read_data(dataset=write(rows), tokenizer=tokenizer, max_length=64, on_bad_rows=None)
    assert read.train.findings.dropped == {"blank 'answer'": 2, "blank 'question'": 1}
    row, text = read.train.findings.first_of["blank 'answer'"]
    assert (row, text.endswith("rows.jsonl line 2, column 'answer': '' is blank")) == (2, True)
    assert (len(read.train.conversations), read.train.encoded.lengths) == (1, [len(read.train.encoded.rows[0].input_ids)])
    bad = read_data(dataset=write(rows[1:], "bad.jsonl"), tokenizer=tokenizer, max_length=64, on_bad_rows=None)
    with pytest.raises(UsageError, match=r"none of 3 rows can be used; the first: .* line 1"):
        bad.prepared()


def test_a_date_in_parquet_is_refused(tokenizer: Any, write: Write) -> None:
    path = write([{"question": "When?", "answer": datetime.date(2026, 11, 1)}], "dates.parquet")
    with pytest.raises(UsageError, match=r"dates.parquet row 1, column 'answer': datetime.date\(2026, 11, 1\) is date"):
        prepared(tokenizer, path)


def test_a_template_that_refuses_one_row_names_it(tokenizer: Any, write: Write) -> None:
    check = "{% if messages | length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    tokenizer.chat_template = check + CHAT_TEMPLATE
    turn = {"role": "user", "content": "x"}
    path = write([{"messages": [turn, turn, {"role": "assistant", "content": "y"}]}])
    with pytest.raises(UsageError, match="line 1, the chat template refuses the row: roles must alternate"):
        prepared(tokenizer, path)


def test_a_template_that_doubles_the_begin_token_is_refused(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    with pytest.raises(UsageError, match=r"line 1, the row begins with '<\|im_start\|>' twice"):
        prepared(tokenizer, write([GOOD]))


def test_long_rows_are_cut_on_the_right_and_counted(tokenizer: Any, write: Write) -> None:
    data = prepared(tokenizer, write([GOOD, {"question": "q", "answer": "b " * 400}]), max_length=64)
    assert data.report.truncated == 1
    assert data.report.longest == len(data.train[1].input_ids) == 64
    assert data.train[1].labels[-1] not in (-100, tokenizer.eos_token_id)
    assert "cut to max_length: 1 row, losing the end of the response" in data.report.lines()


def test_an_impossible_max_length_is_refused(tokenizer: Any, write: Write) -> None:
    with pytest.raises(UsageError, match="max_length is 1; a row needs at least 2 tokens"):
        prepared(tokenizer, write([GOOD]), max_length=1)


def test_overlap_and_duplicates_are_counted_whatever_case_and_spaces(tokenizer: Any, write: Write) -> None:
    rows = [
        {"question": q, "answer": a} for q, a in (("What is it?", "x"), (" what  is\nit?", "X"), ("Who?", "y"), ("Who?", "z"))
    ]
    held_out = [{"question": "WHO?", "answer": "k"}, {"question": "Where?", "answer": "k"}]
    data = prepared(tokenizer, write(rows), eval_dataset=write(held_out, "held.jsonl"))
    assert (data.report.duplicates, data.report.overlap) == (1, 1)
    assert data.report.evaluation is not None
    assert [row.row for row in data.evaluation] == [1, 2]
    assert (
        "overlap: 1 of 2 evaluation questions also stand in the training set and will look easier than they are"
        in data.report.lines()
    )


def test_overlap_of_plain_texts_and_conversations_is_found_too(tokenizer: Any, write: Write) -> None:
    texts = prepared(tokenizer, write([{"text": "abc"}]), eval_dataset=write([{"text": "ABC"}], "held.jsonl"))
    assert texts.report.overlap == 1
    asked = write([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}], "c.jsonl")
    assert prepared(tokenizer, asked, eval_dataset=write([GOOD], "qa.jsonl"), system_prompt="s").report.overlap == 1


def test_the_demo_rows_are_read_as_openmath(tokenizer: Any, write: Write) -> None:
    rows = arithmetic_data(train=30, held_out=5)
    write(rows.train, "train.jsonl")
    data = prepared(
        tokenizer,
        f"openmath:{write(rows.train, 'train.jsonl')}",
        eval_dataset=write(rows.unseen_numbers, "held.jsonl"),
        trunc_train=24,
    )
    assert (data.name, len(data.train), len(data.evaluation), data.report.overlap) == ("openmath", 24, 5, 0)
    assert learnt(tokenizer, data) == f"{rows.train[0]['answer']}<|im_end|>"
    assert "Put the final answer in \\boxed{}" in tokenizer.decode(data.evaluation[0].input_ids)
    assert data.report.conversions == ()


def test_an_evaluation_file_without_a_name_is_read_as_the_training_sets_task(tokenizer: Any, write: Write) -> None:
    path = write(QA)
    own = prepared(tokenizer, f"openmath:{path}", eval_dataset=write(QA[:1], "held.jsonl"))
    assert "\\boxed{1}" in tokenizer.decode(own.evaluation[0].input_ids)
    assert own.report.evaluation is not None
    assert own.report.evaluation.conversions[1] == "answer: 1 put into \\boxed{}, 1 → \\boxed{1}"
    named = prepared(tokenizer, path, eval_dataset=f"openmath:{path}")
    assert "\\boxed" not in tokenizer.decode(named.train[0].input_ids)
    assert "\\boxed" in tokenizer.decode(named.evaluation[0].input_ids)


def test_a_folders_own_held_out_files_are_used(tokenizer: Any, write: Write, tmp_path: Path) -> None:
    write(QA[:3], "set/train.jsonl")
    write(QA[3:5], "set/test.jsonl")
    folder = str(tmp_path / "set")
    assert len(prepared(tokenizer, folder).evaluation) == 2
    write(QA[5:6], "set/validation.jsonl")
    assert len(prepared(tokenizer, folder).evaluation) == 1
    assert len(prepared(tokenizer, write(QA[:1]), eval_dataset=folder).evaluation) == 1
    assert prepared(tokenizer, f"{folder}/train.jsonl").evaluation == []


def test_hub_names_are_evaluated_on_their_own_split(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"question": "is it", "passage": "It is.", "answer": True}]
    asked: list[str] = []

    def load(*_: object, split: str, **__: object) -> Any:
        asked.append(split)
        return rows

    monkeypatch.setattr("quantkit.hub._found", [""])
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = prepared(tokenizer, "boolq", eval_dataset="boolq")
    assert asked == ["train", "validation"]
    assert learnt(tokenizer, data) == "yes<|im_end|>"
    assert data.report.conversions == ("answer: 1 yes/no value written out, True → 'yes'",)


def test_bad_rows_of_the_evaluation_set_stop_the_run_too(tokenizer: Any, write: Write) -> None:
    with pytest.raises(UsageError, match=r"held.jsonl line 1, column 'answer'"):
        prepared(tokenizer, write([GOOD]), eval_dataset=write([GOOD | {"answer": ""}], "held.jsonl"))


def test_the_fingerprint_changes_with_everything_that_changes_the_rows(tokenizer: Any, write: Write) -> None:
    path = write(QA)

    def fingerprint(dataset: str = path, **settings: Any) -> str:
        return prepared(tokenizer, dataset, **settings).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    others = [
        fingerprint(system_prompt="Be brief."),
        fingerprint(trunc_train=19),
        fingerprint(max_length=255),
        fingerprint(dataset=f"openmath:{path}"),
        fingerprint(dataset=write([*QA[:-1], {"question": "19+1?", "answer": 21.0}], "other.jsonl")),
    ]
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'\\n' }}{% endfor %}", "'\\n\\n' }}{% endfor %}")
    assert tokenizer.chat_template != CHAT_TEMPLATE
    others.append(fingerprint())
    assert len({first, *others}) == 7


def test_the_report_is_plain_data_and_counts_tokens(tokenizer: Any, write: Write) -> None:
    data = prepared(tokenizer, write(QA), eval_dataset=write(QA[:2], "held.jsonl"), system_prompt="s")
    report = data.report
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.to_dict()["evaluation"]["rows_used"] == 2
    counts = sorted(row.supervised for row in data.train)
    assert (report.supervised.minimum, report.supervised.p1, report.supervised.median) == (counts[0], counts[0], counts[9])
    assert report.supervised.total == sum(counts)
    assert report.tokens == sum(len(row.input_ids) for row in data.train)
    assert report.lines()[0].endswith("rows.jsonl: 20 of 20 rows as question/answer")
    assert all("\n" not in line for line in report.lines())


def test_what_the_template_does_is_said_in_the_report(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = templates.DROPS_SYSTEM
    folded = "the chat template has no system role: the system text stands at the top of the first user turn"
    assert folded not in prepared(tokenizer, write([GOOD])).report.lines()
    assert folded in prepared(tokenizer, write([GOOD]), system_prompt="Be brief.").report.lines()
    tokenizer.chat_template = templates.SYSTEM_IN_LAST_USER_TURN
    turns = [{"role": role, "content": role * n} for n in (1, 2) for role in ("user", "assistant")]
    notes = prepared(tokenizer, write([{"messages": turns}]), system_prompt="s").report.notes
    assert notes[0].startswith("1 earlier responses are not learnt")


def test_the_data_room_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = ("torch", "datasets", "pyarrow", "transformers", "jinja2")
    code = f"import sys, quantkit.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
