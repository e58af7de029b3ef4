"""Which tokens of a row are learnt, and is the row fit to be learnt from?

A row is tokenized once, as a whole; the tokens that overlap a response (its end token included) keep their ids as labels,
all others are -100. Every row is then read back: the response must stand in the decoded labels, and the row must end in a
token generation stops on. Comparing ids with the pad token, as common collators do, would erase the end token wherever
pad = eos; trusting the template would train on empty answers where it renders numbers as nothing.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantkit.data.chat import ChatFormat, Span
from quantkit.data.findings import CUT_OFF, Findings, RowError, shown
from quantkit.data.schemas import Conversation

IGNORED = -100
"""Label of a token that is not learnt, as PyTorch's cross entropy has it."""
ROWS_AT_ONCE = 512
THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids and labels of equal length; a label is the token's id where it is learnt, else -100."""

    input_ids: list[int]
    labels: list[int]
    row: int
    """Number of the row in its set, from 1."""

    @property
    def supervised(self) -> int:
        """Return how many tokens are learnt."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(slots=True)
class Encoded:
    """The rows of a set that can be learnt from; `truncated` were cut, `unlearnt` earlier responses were not found."""

    rows: list[EncodedRow]
    truncated: int = 0
    unlearnt: int = 0
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row before it was cut."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    row: int
    column: str
    text: str
    spans: list[Span]


def encode(conversations: Sequence[Conversation], chat: ChatFormat, max_length: int, findings: Findings) -> Encoded:
    """Tokenize and label conversations; rows longer than `max_length` tokens are cut on the right.

    Rows that cannot be learnt from are left out and collected in `findings`.
    """
    result = Encoded([])
    for start in range(0, len(conversations), ROWS_AT_ONCE):
        rendered = list(_render(conversations[start : start + ROWS_AT_ONCE], chat, findings, result))
        for item, ids, ranges, decoded in _tokenize(rendered, chat.tokenizer):
            try:
                _check(item, ids, decoded, chat)
                row = _label(item, ids, ranges, max_length)
            except RowError as error:
                findings.bad(item.row, error)
                continue
            result.truncated += len(ids) > max_length
            result.lengths.append(len(ids))
            result.rows.append(row)
    return result


def _render(
    conversations: Sequence[Conversation], chat: ChatFormat, findings: Findings, result: Encoded
) -> Iterator[_Rendered]:
    end = chat.tokenizer.eos_token
    for item in conversations:
        try:
            if item.text is not None:
                start = "" if item.text.startswith(chat.bos) else chat.bos
                stop = "" if item.text.rstrip().endswith(end) else end
                text = f"{start}{item.text if stop else item.text.rstrip()}{stop}"
                yield _Rendered(
                    item.row, item.column, text, [Span(len(chat.bos), len(text), item.text.removeprefix(chat.bos).rstrip())]
                )
                continue
            _refuse_control_tokens(item, chat)
            text, spans, unlearnt = chat.locate(item.messages, item.first_response)
            if chat.end_token_id is not None:
                text += end
                spans[-1] = Span(spans[-1].start, len(text), spans[-1].content)
            result.unlearnt += unlearnt
            yield _Rendered(item.row, item.column, text, spans)
        except RowError as error:
            findings.bad(item.row, error)


def _refuse_control_tokens(item: Conversation, chat: ChatFormat) -> None:
    """Raise `RowError` where a turn's own text holds what the template puts between turns; an answer may end in it."""
    for number, turn in enumerate(item.messages, start=1):
        content = turn["content"]
        if turn["role"] == "assistant":
            content = content.rstrip().removesuffix(chat.final_end)
        if found := chat.control_token_in(content):
            at = content.index(found)
            raise RowError(
                f"turn {number} ({turn['role']}) holds {found!r} in {shown(content[max(0, at - 20) : at + 40], 80)}; the chat"
                " template writes it between turns, so the model would read what follows as another turn",
                column=item.column if turn["role"] == "assistant" else "",
                reason="control token in the text",
            )


def _tokenize(
    rendered: Sequence[_Rendered], tokenizer: Any
) -> Iterator[tuple[_Rendered, list[int], list[tuple[int, int]], list[str]]]:
    """Yield each row with its ids, the token ranges of its responses and the decoded text of these ranges."""
    if not rendered:
        return
    texts = [item.text for item in rendered]
    fast = bool(tokenizer.is_fast)
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ranges: list[list[tuple[int, int]]] = []
    for index, item in enumerate(rendered):
        ids = batch["input_ids"][index]
        if fast:
            starts, stops = zip(*batch["offset_mapping"][index], strict=True) if ids else ((), ())
            ranges.append([_by_offsets(starts, stops, span) for span in item.spans])
        else:
            ranges.append([_by_prefix(tokenizer, item.text, ids, span) for span in item.spans])
    flat = [batch["input_ids"][row][first:last] for row, item in enumerate(ranges) for first, last in item]
    decoded = iter(tokenizer.batch_decode(flat, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    for item, ids, found in zip(rendered, batch["input_ids"], ranges, strict=True):
        yield item, ids, found, [next(decoded) for _ in found]


def _by_offsets(starts: Sequence[int], stops: Sequence[int], span: Span) -> tuple[int, int]:
    """Return the range of tokens that overlap the span; a token across its border belongs to it."""
    first = bisect_left(stops, span.start + 1)
    return first, max(first, bisect_left(starts, span.stop))


def _by_prefix(tokenizer: Any, text: str, ids: Sequence[int], span: Span) -> tuple[int, int]:
    """Do the same without offsets: as many tokens as the text before the border shares with the whole."""

    def shared(position: int) -> int:
        before = tokenizer(text[:position], add_special_tokens=False, verbose=False)["input_ids"]
        return next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))

    return shared(span.start), shared(span.stop)


def _check(item: _Rendered, ids: Sequence[int], decoded: Sequence[str], chat: ChatFormat) -> None:
    for span, text in zip(item.spans, decoded, strict=True):
        if span.content in text:
            continue
        seen, wanted = _compact(text), _compact(span.content)
        if wanted not in seen and (span.last or _compact(THOUGHTS.sub("", span.content)) not in seen):
            raise RowError(
                f"the response {shown(span.content)} does not stand in the text that would be learnt, {shown(text)};"
                " the chat template or the tokenizer changes it",
                column=item.column,
                reason="response lost in the rendered text",
            )
    bos = chat.tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise RowError(f"the row begins with {chat.tokenizer.bos_token!r} twice", reason="double begin token")
    if ids[-1] not in chat.stop_token_ids:
        found = shown(chat.tokenizer.decode([ids[-1]]))
        raise RowError(f"the row ends in {found}, on which generation does not stop", reason="no end token")


def _label(item: _Rendered, ids: list[int], ranges: Sequence[tuple[int, int]], max_length: int) -> EncodedRow:
    labels = [IGNORED] * len(ids)
    for first, last in ranges:
        labels[first:last] = ids[first:last]
    labels[:1] = [IGNORED]  # nothing predicts the first token
    row = EncodedRow(ids[:max_length], labels[:max_length], item.row)
    if not row.supervised:
        raise RowError(
            f"no token of the response {shown(item.spans[-1].content)} is left: the prompt has {ranges[0][0]} tokens,"
            f" max_length is {max_length}",
            column=item.column,
            reason=CUT_OFF,
        )
    return row


def _compact(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())
