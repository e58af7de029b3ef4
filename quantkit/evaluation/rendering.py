"""What token ids does a model get? The ones training would have given it: the same template, the same labels.

Prompts are asked up to where an answer begins; for perplexity the same conversation is encoded with its reference answer
and only the last response is labelled. A prompt put together here by other means would measure a model on something it was
not taught.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from quantkit.data.chat import ChatFormat
from quantkit.data.encode import encode
from quantkit.data.findings import Findings
from quantkit.data.schemas import Conversation
from quantkit.evaluation.tasks import Task

UNCUT = 1 << 30


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """One example as token ids: what is asked, and the whole conversation with labels (-100 outside the response)."""

    prompt_ids: list[int]
    input_ids: list[int]
    labels: list[int]


def render(task: Task, tokenizer: Any, stop_token_ids: Collection[int]) -> list[RenderedRow]:
    """Return the token ids of every example, in order.

    Raises:
        UsageError: the chat template fails, or a row is lost in it; source and row are named.
    """
    chat = ChatFormat(tokenizer, stop_token_ids)
    findings = Findings(lambda row: f"{task.source} row {row}")
    conversations = [
        Conversation(list(map(dict, example.messages)), example.row, first_response=len(example.messages) - 1)
        for example in task.examples
    ]
    encoded = encode(conversations, chat, UNCUT, findings).rows
    findings.settle("error")
    return [
        RenderedRow(chat.prompt_ids(conversation.prompt), row.input_ids, row.labels)
        for conversation, row in zip(conversations, encoded, strict=True)
    ]
