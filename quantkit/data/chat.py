"""What text does a model see of a conversation, where in it do the responses stand, and which token ends them?

The tokenizer's own chat template is probed with a small conversation: does it keep a system turn, what does it write after
a response, does generation stop on that? `{% generation %}` masks are not used: the stock templates of Llama-3.1, Qwen3
and Gemma-3 have none. Training and evaluation render through this class, so both see the same text.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.data.findings import RowError
from quantkit.data.template_trial import fault_of_template
from quantkit.data.turns import Message
from quantkit.errors import UsageError

TEMPLATE_SETTINGS = {"date_string": "26 Jul 2024"}
"""Llama-3's templates write today's date unless they are given one; their own default keeps rows the same tomorrow."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '\\n' }}"
    "{% else %}{{ message['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
)
"""For tokenizers without a chat template (base models): system text, blank line, question, newline, answer, end token."""

HALF_A_TOKEN = re.compile(r"<[^<>]*$")
"""What two different tokens such as `<|end|>` and `<|return|>` begin with."""

QUESTIONS = ("quantkit-probe-a", "quantkit-probe-c")
ANSWERS = ("quantkit-probe-b", "quantkit-probe-d")
SYSTEM = "quantkit-probe-s"


@dataclass(frozen=True, slots=True)
class Span:
    """A response in a rendered text: characters `start` to `stop`, the end of its turn included."""

    start: int
    stop: int
    content: str
    last: bool = True


class ChatFormat:
    """A tokenizer's way of writing conversations.

    `stop_token_ids` are the tokens generation stops on beside the tokenizer's own end token (a model's
    `generation_config.eos_token_id`).

    Raises:
        UsageError: there is no end token, or the template fails on a question with an answer.
    """

    def __init__(self, tokenizer: Any, stop_token_ids: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        eos = tokenizer.eos_token_id
        self.stop_token_ids = frozenset(stop_token_ids) | ({eos} if eos is not None else frozenset())
        if eos is None:
            raise UsageError("the tokenizer has no end token (eos_token); without one a model cannot learn to stop")
        self.bos = self._added_bos()
        self.template = self._template()
        try:
            self._probe()
        except RowError as error:
            raise UsageError(f"the tokenizer's chat template fails on a question with an answer: {error}") from None

    def fold(self, messages: Sequence[Message]) -> list[Message]:
        """Put the system text before the first user turn where the template has no system role."""
        if not self.folds_system or len(messages) < 2 or messages[0]["role"] != "system":
            return list(messages)
        system, first, *rest = messages
        return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Return the text of these turns; with `ask`, up to where the model begins its answer.

        Raises:
            RowError: the template refuses the turns.
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                self.fold(messages),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=ask,
                **TEMPLATE_SETTINGS,
            )
        except (TemplateError, TypeError, LookupError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise RowError(f"the chat template refuses the row: {said}", reason="refused by the chat template") from None
        return str(text)

    def control_token_in(self, text: str) -> str:
        """Return the first of the tokens that part turns which stands literally in a text, or the empty string."""
        found = self._control.search(text) if self._control else None
        return found.group() if found else ""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids that a model answers these turns from, as in training."""
        ids: list[int] = self.tokenizer(self.render(messages, ask=True), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def locate(self, messages: Sequence[Message], first_response: int = 0) -> tuple[str, list[Span], int]:
        """Return the text up to the end of the last response, the spans of all responses, and how many were not found.

        A response before the last one is not found where the template rewrites earlier turns once later ones follow.

        Raises:
            RowError: the template refuses the turns, or does not hold the last response where it should.
        """
        answers = [index for index, turn in enumerate(messages) if turn["role"] == "assistant" and index >= first_response]
        full = self.render(messages[: answers[-1] + 1])
        spans: list[Span] = []
        for index in answers:
            span = self._span(full, messages, index, last=index == answers[-1])
            if span is not None:
                spans.append(span)
        if not spans or not spans[-1].last:
            raise RowError(
                "the chat template writes the prompt otherwise once its answer follows, so the response cannot be told from it",
                reason="response not found in the rendered text",
            )
        return full[: spans[-1].stop], spans, len(answers) - len(spans)

    def _span(self, full: str, messages: Sequence[Message], index: int, *, last: bool) -> Span | None:
        content = messages[index]["content"]
        asked = self.render(messages[:index], ask=True)
        start = len(asked)
        if not full.startswith(asked):
            bare = self.render(messages[:index])
            if not full.startswith(bare):
                return None
            start = _shared(asked, full)
            found = full.find(content.strip(), len(bare))
            start = start if found < 0 else min(start, found)
        end = self.final_end if last else self.turn_end
        stop = full.find(end, start) if end else len(full.rstrip())
        if not end and not last:
            stop = full.find(content.strip(), start)
            stop += len(content.strip()) if stop >= 0 else 0
        return Span(start, stop + len(end), content, last) if stop >= 0 else None

    def _added_bos(self) -> str:
        """Return the begin token that the tokenizer itself puts before plain text, or the empty string."""
        ids = self.tokenizer("a", verbose=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return str(self.tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""

    def _template(self) -> str:
        try:
            if self.tokenizer.chat_template:
                template = str(self.tokenizer.get_chat_template())
                if fault := fault_of_template(template):
                    raise UsageError(f"the tokenizer's chat template is not rendered: {fault}")
                return template
        except ValueError as error:
            raise UsageError(f"the tokenizer's chat templates cannot be used: {str(error).splitlines()[0]}") from None
        self.notes.append(
            "the tokenizer has no chat template: rows read system text, blank line, question, newline, answer, end token"
        )
        return ("{{ bos_token }}" if self.bos else "") + PLAIN_TEMPLATE

    def _probe(self) -> None:
        self.folds_system = False
        one = _turns(QUESTIONS[:1], ANSWERS)
        full = self.render(one)
        if ANSWERS[0] not in full or QUESTIONS[0] not in full:
            missing = "answer" if ANSWERS[0] not in full else "question"
            raise RowError(f"it leaves out the {missing}", reason="template")
        try:
            self.folds_system = SYSTEM not in self.render([{"role": "system", "content": SYSTEM}, *one])
        except RowError:
            self.folds_system = True
        self.final_end = _after(full, ANSWERS[0]).strip()
        try:
            two = self.render(_turns(QUESTIONS, ANSWERS))
            after = _after(two, ANSWERS[0])
            self.turn_end = HALF_A_TOKEN.sub("", after[: _shared(after, _after(two, ANSWERS[1]))]).strip()
        except RowError:
            self.turn_end = self.final_end
        ends = self.tokenizer(self.final_end, add_special_tokens=False, verbose=False)["input_ids"] if self.final_end else []
        self.end_token_id: int | None = None
        """Token that is put after the last response because generation would not stop on the template's own end."""
        if not ends or ends[-1] not in self.stop_token_ids:
            self.end_token_id = self.tokenizer.eos_token_id
            what = f"ends responses with {self.final_end!r}, on which" if ends else "puts nothing after a response, so"
            self.notes.append(
                f"the chat template {what} generation does not stop; {self.tokenizer.eos_token!r} is added to the last response"
            )
        asked = self.render(one[:1], ask=True)
        self.special_tokens = _special_tokens(self.tokenizer)
        """Texts of the tokenizer's special tokens, which it finds in any text."""
        control = [token for token in self.special_tokens if token in full + asked or token == self.tokenizer.eos_token]
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True)))) if control else None
        if not full.startswith(asked):
            begin = asked[_shared(asked, full) :]
            self.notes.append(
                f"the chat template asks for an answer with {begin!r}, which it leaves out of rows that are trained on"
            )


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    try:
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    except NotImplementedError:  # mistral-common's tokenizers name all of them as their special tokens
        added = []
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _turns(questions: Iterable[str], answers: Iterable[str]) -> list[Message]:
    turns: list[Message] = []
    for question, answer in zip(questions, answers, strict=False):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def _shared(one: str, other: str) -> int:
    """Return how many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _after(text: str, part: str) -> str:
    return text[text.rindex(part) + len(part) :] if part in text else ""
