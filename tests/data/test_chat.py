"""Chat templates of every habit: where the responses stand and what ends them."""

from typing import Any

import pytest

from quantkit.data import ChatFormat, Conversation, Findings
from quantkit.data.encode import IGNORED, EncodedRow, encode
from quantkit.errors import UsageError
from tests.data import templates
from tests.tiny import CHAT_TEMPLATE

SYSTEM = {"role": "system", "content": "Be brief."}
ONE = [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "It is 7."}]
TWO = [*ONE, {"role": "user", "content": "5+6?"}, {"role": "assistant", "content": "Then 11."}]
ALL = {name: value for name, value in vars(templates).items() if name.isupper() and name != "SKIPS_NUMBERS"} | {
    "CHATML": CHAT_TEMPLATE,
    "NONE": None,
}


def encoded(tokenizer: Any, messages: list[dict[str, str]], template: str | None, **settings: Any) -> EncodedRow:
    tokenizer.chat_template = template
    findings = Findings(str)
    conversation = Conversation(messages, 1, first_response=settings.pop("first_response", 0))
    rows = encode([conversation], ChatFormat(tokenizer, **settings), 4096, findings).rows
    findings.settle("error")
    return rows[0]


def learnt(tokenizer: Any, row: EncodedRow) -> list[str]:
    """Return the texts of the runs of learnt tokens."""
    runs: list[list[int]] = [[]]
    for label in row.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["", "system"])
@pytest.mark.parametrize("template", ALL)
def test_the_last_response_and_its_end_are_learnt_under_every_template(tokenizer: Any, template: str, system: Any) -> None:
    row = encoded(tokenizer, system + ONE, ALL[template])
    (text,) = learnt(tokenizer, row)
    assert "It is 7." in text
    assert "3+4" not in text
    assert row.input_ids[-1] == row.labels[-1] == tokenizer.eos_token_id
    assert ("Be brief." in tokenizer.decode(row.input_ids)) == bool(system)


@pytest.mark.parametrize("template", ALL)
def test_generation_starts_from_the_tokens_before_the_response(tokenizer: Any, template: str) -> None:
    row = encoded(tokenizer, ONE, ALL[template])
    prompt = ChatFormat(tokenizer).prompt_ids(ONE[:1])
    if template != "THINKS_FIRST":
        assert row.input_ids[: len(prompt)] == prompt
    first = next(index for index, label in enumerate(row.labels) if label != IGNORED)
    assert first == len(prompt) or template in ("THINKS_FIRST", "NO_END")


@pytest.mark.parametrize("template", ALL)
def test_all_assistant_turns_are_learnt(tokenizer: Any, template: str) -> None:
    texts = learnt(tokenizer, encoded(tokenizer, TWO, ALL[template]))
    assert len(texts) == 2
    assert "It is 7." in texts[0]
    assert "Then 11." in texts[1]
    assert "+" not in "".join(texts)


def test_turns_of_the_prompt_are_not_learnt(tokenizer: Any) -> None:
    assert learnt(tokenizer, encoded(tokenizer, TWO, CHAT_TEMPLATE, first_response=3)) == ["Then 11.<|im_end|>"]


def test_nothing_after_the_last_response_is_kept(tokenizer: Any) -> None:
    row = encoded(tokenizer, [*ONE, {"role": "user", "content": "never answered"}], CHAT_TEMPLATE)
    assert tokenizer.decode(row.input_ids).endswith("<|im_start|>assistant\nIt is 7.<|im_end|>")


def test_the_end_token_is_learnt_although_pad_is_the_same_token(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert encoded(tokenizer, ONE, CHAT_TEMPLATE).labels[-1] == tokenizer.pad_token_id


def test_an_end_that_generation_stops_on_needs_no_further_token(tokenizer: Any) -> None:
    tokenizer.chat_template = templates.TURNS
    (stop,) = tokenizer("<end>", add_special_tokens=False)["input_ids"][-1:]
    assert ChatFormat(tokenizer, {stop}).end_token_id is None
    assert learnt(tokenizer, encoded(tokenizer, ONE, templates.TURNS, stop_token_ids={stop})) == ["It is 7.<end>"]
    assert learnt(tokenizer, encoded(tokenizer, ONE, templates.TURNS)) == ["It is 7.<end>\n<|im_end|>".replace("\n", "")]


@pytest.mark.parametrize("template", ["NO_SYSTEM_ROLE", "DROPS_SYSTEM", "INST"])
def test_system_text_moves_into_the_first_user_turn_where_there_is_no_system_role(tokenizer: Any, template: str) -> None:
    text = tokenizer.decode(encoded(tokenizer, [SYSTEM, *ONE], ALL[template]).input_ids)
    assert "Be brief.\n\n3+4?" in text


def test_an_earlier_response_that_the_template_moves_is_left_out_and_counted(tokenizer: Any) -> None:
    tokenizer.chat_template = templates.SYSTEM_IN_LAST_USER_TURN
    findings = Findings(str)
    result = encode([Conversation([SYSTEM, *TWO], 1)], ChatFormat(tokenizer), 4096, findings)
    assert result.unlearnt == 1
    assert learnt(tokenizer, result.rows[0]) == ["Then 11.<|im_end|>"]
    assert not findings.dropped


def test_reasoning_is_learnt_in_the_last_turn_and_may_be_dropped_from_earlier_ones(tokenizer: Any) -> None:
    thought = [
        turn | {"content": f"<think>hm</think>{turn['content']}"} if turn["role"] == "assistant" else turn for turn in TWO
    ]
    strips = CHAT_TEMPLATE.replace(
        "message['content']", "(message['content'] if loop.last else message['content'].split('</think>')[-1])"
    )
    texts = learnt(tokenizer, encoded(tokenizer, thought, strips))
    assert texts == ["It is 7.<|im_end|>", "<think>hm</think>Then 11.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "note"),
    [
        (CHAT_TEMPLATE, None),
        (templates.TURNS, r"ends responses with '<end>', on which generation does not stop; '<|im_end|>' is added"),
        (templates.NO_END, "puts nothing after a response"),
        (templates.THINKS_FIRST, r"asks for an answer with '<think>\n'"),
        (None, "the tokenizer has no chat template: rows read system text"),
    ],
)
def test_what_is_special_about_a_template_is_said(tokenizer: Any, template: str | None, note: str | None) -> None:
    tokenizer.chat_template = template
    notes = ChatFormat(tokenizer).notes
    assert notes == [] if note is None else note.replace("\n", "\\n") in notes[0]


def test_rows_do_not_depend_on_todays_date(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if date_string is not defined %}{{ strftime_now('%c') }}{% endif %}{{ date_string }}" + CHAT_TEMPLATE
    )
    assert ChatFormat(tokenizer).render(ONE).startswith("26 Jul 2024<|im_start|>")


def test_a_base_tokenizer_that_adds_a_begin_token_gets_exactly_one(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    before = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    try:
        assert encoded(tokenizer, ONE, None).input_ids.count(1) == 1
        chat = ChatFormat(tokenizer)
        for text in ("plain words", "<|im_start|>plain words", "plain words<|im_end|>\n"):
            row = encode([Conversation([], 1, text=text)], chat, 64, Findings(str)).rows[0]
            assert tokenizer.decode(row.input_ids) == "<|im_start|>plain words<|im_end|>"
            assert row.labels == [IGNORED, *row.input_ids[1:]]
    finally:
        tokenizer.backend_tokenizer.post_processor = before


class Slow:
    """A tokenizer without offsets."""

    def __init__(self, fast: Any) -> None:
        self.fast, self.is_fast = fast, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fast, name)

    def __call__(self, *arguments: Any, return_offsets_mapping: bool = False, **options: Any) -> Any:
        assert not return_offsets_mapping
        return self.fast(*arguments, **options)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, templates.QWEN3_LIKE, templates.INST, None])
def test_tokenizers_without_offsets_give_the_same_labels(tokenizer: Any, template: str | None) -> None:
    slow = Slow(tokenizer)
    tokenizer.chat_template = template
    rows = [encode([Conversation([*TWO], 1)], ChatFormat(kind), 512, Findings(str)).rows for kind in (tokenizer, slow)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0].content }}", "fails on a question with an answer: it leaves out the answer"),
        ("{{ messages[-1].content }}", "it leaves out the question"),
        ("{% for m in messages %}", "fails on a question with an answer: the chat template refuses the row"),
        ("{{ raise_exception('no') }}", "the chat template refuses the row: no"),
        (
            "{{ messages.__class__.__base__.__subclasses__() }}",
            "the chat template refuses the row: access to attribute '__class__'",
        ),
    ],
)
def test_templates_that_cannot_be_trained_on_are_refused(tokenizer: Any, template: str, said: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said):
        ChatFormat(tokenizer)


def test_several_templates_without_a_default_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    with pytest.raises(UsageError, match="the tokenizer's chat templates cannot be used: "):
        ChatFormat(tokenizer)


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer: Any) -> None:
    eos = tokenizer.eos_token
    tokenizer.eos_token = None
    try:
        with pytest.raises(UsageError, match="the tokenizer has no end token"):
            ChatFormat(tokenizer)
    finally:
        tokenizer.eos_token = eos


def test_a_tokenizer_that_does_not_list_added_tokens_still_names_its_special_ones(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", property(refuses))
    chat = ChatFormat(tokenizer)
    assert chat.control_token_in("a <|im_start|> b") == "<|im_start|>"
    assert chat.control_token_in("a <|endoftext|> b") == ""  # special, but not between turns
