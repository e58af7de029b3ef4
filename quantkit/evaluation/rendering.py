"""What token ids does a model get? The ones training would have given it: the same template, the same labels.

Prompts are asked up to where an answer begins; for perplexity the same conversation is encoded with its reference answer
and only the last response is labelled. Options to be weighed follow the same prompt. A prompt put together here by other means
would measure a model on something it was not taught.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from quantkit.data.chat import ChatFormat
from quantkit.data.encode import encode
from quantkit.data.findings import Findings, RowError
from quantkit.data.schemas import Conversation
from quantkit.errors import UsageError
from quantkit.evaluation.likelihood import Request, encode_pair
from quantkit.evaluation.tasks import ChoiceLikelihood, Example, Task

UNCUT = 1 << 30


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """One example as token ids: what is asked, and the whole conversation with labels (-100 outside the response)."""

    prompt_ids: list[int]
    """Empty for a plain text."""
    input_ids: list[int]
    labels: list[int]


def render(task: Task, tokenizer: Any, stop_token_ids: Collection[int]) -> list[RenderedRow]:
    """Return the token ids of every example, in order.

    Raises:
        UsageError: the chat template fails, or a row is lost in it; source and row are named.
    """
    chat = ChatFormat(tokenizer, stop_token_ids)
    findings = Findings(lambda row: f"{task.source} row {row}")
    conversations = [_conversation(example) for example in task.examples]
    encoded = encode(conversations, chat, UNCUT, findings).rows
    findings.settle("error")
    return [
        RenderedRow([] if item.text is not None else chat.prompt_ids(item.prompt), row.input_ids, row.labels)
        for item, row in zip(conversations, encoded, strict=True)
    ]


def option_requests(task: ChoiceLikelihood, tokenizer: Any, stop_token_ids: Collection[int]) -> list[list[Request]]:
    """Return, for every example and each of its options, the token ids of the prompt and of the option after it.

    Raises:
        UsageError: the chat template fails, or an option adds no token; source and row are named.
    """
    chat = ChatFormat(tokenizer, stop_token_ids)
    found = []
    for example, options in zip(task.examples, task.choices, strict=True):
        try:
            prompt = chat.render(_conversation(example).prompt, ask=True)
            wanted = [option.text or option.label for option in options]
            found.append([encode_pair(tokenizer, prompt, text, add_special_tokens=False) for text in wanted])
        except (RowError, UsageError) as error:
            raise UsageError(f"{task.source} row {example.row}: {error}") from None
    return found


def _conversation(example: Example) -> Conversation:
    if example.text is not None:
        return Conversation([], example.row, text=example.text, column="text")
    return Conversation(list(map(dict, example.messages)), example.row, first_response=len(example.messages) - 1)
