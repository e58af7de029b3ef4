"""What each check finds, in rows that have the fault and no other; sound rows leave nothing to look at."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quantkit.config import RunConfig
from quantkit.data import read_data
from quantkit.data.arithmetic import arithmetic_data
from quantkit.preflight import Finding, ModelFacts, Preflight, examine
from quantkit.preflight.look import POSITIONS
from tests.data import templates
from tests.data.conftest import Write
from tests.preflight.faults import of_words
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

SOUND: list[dict[str, Any]] = list(arithmetic_data(train=20).train)
TURN = {"role": "user", "content": "x"}
ANSWER = {"role": "assistant", "content": "y"}
FACTS = ModelFacts(vocab_size=512, positions=512)


def examined(tokenizer: Any, dataset: str, model: ModelFacts = FACTS, **settings: Any) -> Preflight:
    config = RunConfig(**({"model_name_or_path": "m", "dataset_name": dataset, "max_length": 256} | settings))
    read = read_data(
        dataset=dataset,
        tokenizer=tokenizer,
        max_length=config.max_length,
        eval_dataset=config.eval_dataset_name,
        system_prompt=config.system_prompt,
        on_bad_rows=None,
    )
    return examine(read, config, model)


def only(preflight: Preflight, check: str) -> Finding:
    """Return the one finding of a check."""
    (found,) = [finding for finding in preflight.findings if finding.check == check]
    return found


def test_sound_rows_leave_nothing_to_look_at(tokenizer: Any, write: Write) -> None:
    found = examined(tokenizer, write(SOUND))
    assert {item.severity for item in found.findings} == {"repaired"}
    assert found.verdict == "nothing stands against training on this"
    assert found.report is not None
    assert dict(row[:2] for row in found.figures)["rows"] == "20 of 20"


def varied(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [*SOUND, *rows]


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str, str, str]] = {
    "a repeated row": (
        varied({"question": SOUND[0]["question"].upper(), "answer": SOUND[0]["answer"]}),
        {},
        "warning",
        "repeated rows",
        "1 of 21 rows (4.8%) repeat an earlier one; first rows.jsonl line 21 repeats rows.jsonl line 1",
    ),
    "a row repeated but for punctuation": (
        varied({"question": SOUND[0]["question"].replace(".", " –"), "answer": SOUND[0]["answer"]}),
        {},
        "warning",
        "repeated rows",
        "0 of 21 rows (0.0%) repeat an earlier one, 1 more but for punctuation",
    ),
    "a question with two answers": (
        varied({"question": SOUND[0]["question"], "answer": "I do not know."}),
        {},
        "note",
        "repeated rows",
        "1 of 20 questions (5.0%) have several different answers; first",
    ),
    "an answer to nearly everything": (
        [{"question": f"{n}?", "answer": "yes" if n else "no"} for n in range(20)],
        {},
        "warning",
        "one answer",
        "19 of 20 answers (95.0%) are 'yes'",
    ),
    "two turns of one role": (
        [{"messages": [TURN, TURN, ANSWER]}],
        {},
        "warning",
        "order of turns",
        "1 of 1 rows (100%) have two turns of one role in a row; first rows.jsonl line 1",
    ),
    "a question that nobody answers": (
        [{"messages": [TURN, ANSWER, TURN]}],
        {},
        "warning",
        "order of turns",
        "1 of 1 rows (100%) end in a turn that nobody answers",
    ),
    "a system turn at the end": (
        [{"messages": [TURN, ANSWER, {"role": "system", "content": "Be brief."}]}],
        {},
        "repaired",
        "order of turns",
        "system turn moved to the front, from turn 3",
    ),
    "plain text that was rendered already": (
        [{"text": "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny<|im_end|>"}],
        {},
        "warning",
        "written tokens",
        "1 of 1 rows (100%) of plain text hold tokens of the chat template",
    ),
    "a special token in a question": (
        varied({"question": "What is <|endoftext|>?", "answer": "An end."}),
        {},
        "warning",
        "written tokens",
        "<|endoftext|> in 1; first rows.jsonl line 21",
    ),
    "bad rows that may be dropped": (
        varied({"question": "1+1?", "answer": ""}),
        {"on_bad_rows": "drop"},
        "warning",
        "unusable rows",
        "1 of 21 rows (4.8%) cannot be learnt from: blank 'answer'; first rows.jsonl line 21, column 'answer': '' is blank",
    ),
    "some rows that are cut": (
        varied({"question": "q", "answer": "7 " * 200}),
        {},
        "warning",
        "cut rows",
        "1 of 21 rows (4.8%) are longer than max_length=256 and lose the end of their response; first rows.jsonl line 21",
    ),
    "plain text that is cut": (
        [{"text": "7 " * 300}],
        {},
        "warning",
        "cut rows",
        "and lose what follows",
    ),
    "a row of another kind of text": (
        [{"question": "How many books are there in total? " * 7 if n else "zqxj" * 55, "answer": f"{n}"} for n in range(13)],
        {},
        "warning",
        "tokens per character",
        "1 of 13 longer rows (7.7%) take over 3 times as many tokens per character as the median",
    ),
    "a script that is spelled in bytes": (
        varied({"question": "หนึ่งบวกสองเท่ากับเท่าไร", "answer": "สาม"}),
        {},
        "warning",
        "writing system",
        "100% of the Thai letters (",
    ),
    "rows in packs": (SOUND, {"packing": True}, "note", "packing", "20 rows make 4 packs of up to 256 tokens, "),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_told_with_its_number_and_its_first_place(tokenizer: Any, write: Write, case: str) -> None:
    rows, settings, severity, check, text = CASES[case]
    found = examined(tokenizer, write(rows), **settings)
    told = [item for item in found.findings if (item.severity, item.check) == (severity, check) and text in item.found]
    assert len(told) == 1, found.findings
    assert (severity == "error") == bool(found.of("error"))


def test_scripts_are_told_apart_and_a_few_foreign_words_are_not_told(tokenizer: Any, write: Write) -> None:
    def told(text: str, rows: int = 20) -> list[str]:
        found = examined(tokenizer, write([{"question": text, "answer": row["answer"]} for row in SOUND[:rows]])).findings
        return [item.found for item in found if item.check == "writing system"]

    several = told("一加二 größer als größte")
    assert [text.split(" (")[0] for text in several] == [
        "100% of the CJK letters",
        "100% of the Latin letters beyond a to z",
    ]
    assert "and are spelled in 3.0 tokens each, e.g. 一 加 二" in several[0]
    assert told("one plus two is three " * 6 + "é") == []


def test_questions_that_differ_in_a_sign_are_not_the_same(tokenizer: Any, write: Write) -> None:
    rows = [
        {"question": f"What is 3{sign}4?", "answer": answer} for sign, answer in (("+", "7"), ("-", "x"), (".", "y"), ("", "z"))
    ]
    assert not [item for item in examined(tokenizer, write(rows)).findings if item.check == "repeated rows"]


def test_evaluation_questions_that_are_trained_on_are_counted(tokenizer: Any, write: Write) -> None:
    held = write(
        [SOUND[0], SOUND[1] | {"question": SOUND[1]["question"] + " …"}, {"question": "1+2?", "answer": "3"}], "held.jsonl"
    )
    found = only(examined(tokenizer, write(SOUND), eval_dataset_name=held), "overlap")
    assert found.found.startswith("1 of 3 evaluation questions (33.3%) also stand in the training set, 1 more but for punct")
    assert found.found.endswith("first held.jsonl line 1")


def test_what_is_wrong_with_the_evaluation_set_says_so(tokenizer: Any, write: Write) -> None:
    found = examined(tokenizer, write(SOUND), eval_dataset_name=write([{"question": "q", "answer": ""}], "held.jsonl"))
    assert [item.found.split(":")[0] for item in found.of("error")] == [
        "evaluation",
        "evaluation none of 1 rows can be used"[:10],
    ]
    assert found.report is None
    assert found.figures == []


@pytest.mark.parametrize("template", ["QWEN3_LIKE", "HEADERS", "TURNS"])
def test_stock_templates_without_marks_are_repaired_and_the_answer_is_what_is_learnt(
    tokenizer: Any, write: Write, template: str
) -> None:
    tokenizer.chat_template = getattr(templates, template).removeprefix("{{ bos_token }}")
    turns = [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "7"}]
    ours = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    assert not any(ours["assistant_masks"])  # the trap: a trainer that asks for this mask learns nothing
    path = write([{"messages": turns}])
    found = only(examined(tokenizer, path), "assistant mask")
    assert (found.severity, "all zero" in found.found) == ("repaired", True)
    row = read_data(dataset=path, tokenizer=tokenizer, max_length=99).train.encoded.rows[0]
    assert "7" in tokenizer.decode([label for label in row.labels if label != -100])


def test_a_template_that_marks_answers_is_not_said_to_lack_marks(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{{ '<|im_start|>'", "{% if false %}{% generation %}{% endgeneration %}{% endif %}{{ '<|im_start|>'", 1
    )
    assert "assistant mask" not in {item.check for item in examined(tokenizer, write(SOUND)).findings}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (templates.QWEN3_LIKE, "would have written nothing for a number"),
        (CHAT_TEMPLATE.replace("message['content']", "message['content'] | string"), "would have written '1008.0' for 1008"),
        (CHAT_TEMPLATE, "the chat template fails on numbers"),
    ],
)
def test_what_the_template_would_have_made_of_numbers_is_said(tokenizer: Any, write: Write, template: str, said: str) -> None:
    tokenizer.chat_template = template
    rows = [{"question": f"{n}?", "answer": float(n)} for n in range(3)]
    assert said in only(examined(tokenizer, write(rows)), "conversions").found


def test_a_template_without_a_system_role_an_end_or_marks_is_repaired(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = templates.DROPS_SYSTEM.removeprefix("{{ bos_token }}")
    found = examined(tokenizer, write([{"question": "q", "answer": "a"}]), system_prompt="Be brief.")
    texts = [(item.severity, item.found) for item in found.findings if item.check == "chat template"]
    assert texts[0][0] == texts[1][0] == "repaired"
    assert "generation does not stop; '<|im_end|>' is added" in texts[0][1]
    assert "the system text 'Be brief.' would be lost or refused" in texts[1][1]


def test_earlier_answers_that_the_template_rewrites_are_told(tokenizer: Any, write: Write) -> None:
    tokenizer.chat_template = templates.SYSTEM_IN_LAST_USER_TURN
    rows = [{"messages": [{"role": role, "content": role * n} for n in (1, 2) for role in ("user", "assistant")]}]
    found = [item for item in examined(tokenizer, write(rows), system_prompt="s").findings if item.severity == "warning"]
    assert [item.found[:35] for item in found] == ["1 earlier answers are not learnt: t"]


def test_a_begin_token_that_the_template_forgets_is_told(tokenizer: Any, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.data.chat.ChatFormat._added_bos", lambda _: "<|im_start|>")  # Llama's and Gemma's do so
    tokenizer.chat_template = templates.TURNS.removeprefix("{{ bos_token }}")
    found = only(examined(tokenizer, write(SOUND)), "begin token")
    assert found.found.startswith(
        "20 of 20 rows (100%) do not begin with '<|im_start|>', which the tokenizer puts before plain"
    )


def test_a_tokenizer_without_a_pad_token_is_told(write: Write) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    found = only(examined(tokenizer, write(SOUND)), "padding")
    assert (found.severity, found.found) == ("repaired", "the tokenizer has no pad token")


@pytest.mark.parametrize(("unknown", "severity"), [(4, "warning"), (40, "error")])
def test_questions_the_tokenizer_cannot_write_are_counted(write: Write, tmp_path: Path, unknown: int, severity: str) -> None:
    of_words(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [{"question": "a b c d " * 5 + "สาม " * unknown, "answer": f"a {'b ' * n}c"} for n in range(12)]
    found = only(examined(tokenizer, write(rows)), "unknown text")
    assert found.severity == severity
    assert f"{12 * unknown} of " in found.found
    assert "are '<unk>', the unknown token; first rows.jsonl line 1" in found.found


def test_rows_longer_than_the_models_positions_are_told(tokenizer: Any, write: Write) -> None:
    relative = only(examined(tokenizer, write(SOUND), ModelFacts(512, 40)), "positions")
    learnt = only(examined(tokenizer, write(SOUND), ModelFacts(512, 40, learnt_positions=True)), "positions")
    assert (relative.severity, learnt.severity) == ("warning", "error")
    assert "are longer than the 40 positions of the model; it has no embedding for later ones; first" in learnt.found
    assert relative.advice == "set max_length=40 or less"


def test_a_configuration_says_how_many_positions_and_tokens_there_are() -> None:
    assert ModelFacts.of({POSITIONS[0]: 8, "vocab_size": 9, "rope_theta": 1e4}) == ModelFacts(9, 8)
    assert ModelFacts.of({"text_config": {POSITIONS[0]: 8, "rope_parameters": {}}, "vocab_size": 9}) == ModelFacts(9, 8)
    assert ModelFacts.of({"n_positions": 8}) == ModelFacts(None, 8, learnt_positions=True)
    assert ModelFacts.of({}) == ModelFacts()
