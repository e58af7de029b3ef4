"""What will the model be trained on, exactly? Rows in, checked token ids out, all before the first step.

The fingerprint is taken over what reaches the model (token ids and labels), the source, the template and the system
prompt. Hashing the file alone would call two runs equal that saw different text.
"""

import hashlib
import json
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantkit.data.chat import ChatFormat
from quantkit.data.conversations import to_conversations
from quantkit.data.encode import Encoded, EncodedRow, encode
from quantkit.data.findings import Findings, OnBadRows, normalised
from quantkit.data.report import DataReport, TokenCounts
from quantkit.data.schemas import Conversation, kind_of
from quantkit.data.sources import DatasetRef, Rows, parse_dataset, read_rows, split_files
from quantkit.errors import UsageError


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to train on; `name` is a short tag (letters, digits, dots) for the artifact's name."""

    name: str
    train: list[EncodedRow]
    evaluation: list[EncodedRow]
    fingerprint: str
    """sha256, hexadecimal; changes with the rows, their number, the system prompt, the template and `max_length`."""
    report: DataReport
    system_prompt: str = ""
    """System turn put before rows that bring none; models are asked with it later. Empty: none."""


def prepare_data(
    *,
    dataset: str,
    tokenizer: Any,
    max_length: int,
    eval_dataset: str | None = None,
    system_prompt: str | None = None,
    trunc_train: int | None = None,
    on_bad_rows: OnBadRows = "error",
    stop_token_ids: Collection[int] = (),
) -> PreparedData:
    """Read, render, tokenize and check a training set, and an evaluation set if there is one.

    `dataset` and `eval_dataset` follow the grammar of `quantkit.data.sources`. An evaluation file without a built-in name
    is read as the training set's task. Without `eval_dataset`, a folder's own validation (else test) files are used.
    `trunc_train` keeps the first rows only. `stop_token_ids` are those of the model's generation config.

    Raises:
        UsageError: a source cannot be read, or a row cannot be learnt from and `on_bad_rows` is not `drop`; the text
            names file, row, column and value. Unreadable files are never dropped.
    """
    return read_data(
        dataset=dataset,
        tokenizer=tokenizer,
        max_length=max_length,
        eval_dataset=eval_dataset,
        system_prompt=system_prompt,
        trunc_train=trunc_train,
        on_bad_rows=on_bad_rows,
        stop_token_ids=stop_token_ids,
    ).prepared()


def read_data(
    *,
    dataset: str,
    tokenizer: Any,
    max_length: int,
    eval_dataset: str | None = None,
    system_prompt: str | None = None,
    trunc_train: int | None = None,
    on_bad_rows: OnBadRows | None = "error",
    stop_token_ids: Collection[int] = (),
) -> "ReadData":
    """Do what `prepare_data` does, and keep the conversations that the token ids came from, for who looks closer.

    With `on_bad_rows=None` no row is refused: what is wrong with rows stands in the sets' findings.

    Raises:
        UsageError: as `prepare_data`.
    """
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}; a row needs at least 2 tokens")
    ref = parse_dataset(dataset)
    chat = ChatFormat(tokenizer, stop_token_ids)
    settings = _Settings(chat, max_length, system_prompt, on_bad_rows)
    train = _read(read_rows(ref, limit=trunc_train), ref, settings)
    eval_ref, split = _evaluation_ref(ref, eval_dataset)
    evaluation = _read(read_rows(eval_ref, split=split), eval_ref, settings) if eval_ref else None
    return ReadData(train, evaluation, settings)


@dataclass(frozen=True, slots=True)
class _Settings:
    chat: ChatFormat
    max_length: int
    system_prompt: str | None
    on_bad_rows: OnBadRows | None


@dataclass(frozen=True, slots=True)
class ReadSet:
    """A set's rows on the way: as they stand in the source, as conversations, as token ids, and what was noticed."""

    ref: DatasetRef
    rows: Rows
    conversations: list[Conversation]
    """Those that became token ids, in the same order as `encoded.rows`."""
    encoded: Encoded
    findings: Findings

    @property
    def keys(self) -> list[str]:
        """Return each row's question, in the form in which questions are compared."""
        return [item.key for item in self.conversations]

    def require_rows(self) -> None:
        """Raise `UsageError` where no row can be used."""
        if not self.encoded.rows:
            number, first = len(self.rows.rows), self.findings.first_bad
            raise UsageError(f"{self.rows.source}: none of {number} rows can be used; the first: {first}")

    def report(self) -> DataReport:
        """Return what was counted; raises `UsageError` where no row can be used."""
        rows, encoded = self.rows, self.encoded
        self.require_rows()
        lengths = [len(row.input_ids) for row in encoded.rows]
        unlearnt = "earlier responses are not learnt: the chat template rewrites them once later turns follow"
        return DataReport(
            source=rows.source,
            kind=kind_of(dict.fromkeys(column for row in rows.rows for column in row), rows.source, self.ref.task),
            rows_read=len(rows.rows),
            rows_used=len(encoded.rows),
            dropped=dict(self.findings.dropped),
            truncated=encoded.truncated,
            tokens=sum(lengths),
            longest=max(lengths),
            supervised=TokenCounts.of(encoded.rows),
            duplicates=_duplicates(self.conversations),
            conversions=tuple(self.findings.conversion_lines()),
            notes=(f"{encoded.unlearnt} {unlearnt}",) if encoded.unlearnt else (),
        )


@dataclass(frozen=True, slots=True)
class ReadData:
    """A training set and perhaps an evaluation set, read, and the settings they were read with."""

    train: ReadSet
    evaluation: ReadSet | None
    settings: _Settings

    @property
    def chat(self) -> ChatFormat:
        """Return the tokenizer's way of writing conversations."""
        return self.settings.chat

    def report(self) -> DataReport:
        """Return what was counted in both sets; raises `UsageError` where one of them has no usable row."""
        questions, counted = set(self.train.keys), self.train.report()
        return replace(
            counted,
            overlap=sum(key in questions for key in self.evaluation.keys) if self.evaluation else 0,
            notes=(*counted.notes, *_notes(self.chat, self.train)),
            evaluation=self.evaluation.report() if self.evaluation else None,
        )

    def prepared(self) -> PreparedData:
        """Return what is trained on; raises `UsageError` where a set has no usable row."""
        ref, settings = self.train.ref, self.settings
        task_prompt = ref.task.system_prompt if ref.task else ""
        return PreparedData(
            name=ref.tag,
            train=self.train.encoded.rows,
            evaluation=self.evaluation.encoded.rows if self.evaluation else [],
            fingerprint=_fingerprint(self.train.rows, self.train.encoded.rows, settings, ref),
            report=self.report(),
            system_prompt=task_prompt if settings.system_prompt is None else settings.system_prompt,
        )


def _read(rows: Rows, ref: DatasetRef, settings: _Settings) -> ReadSet:
    findings = Findings(rows.place)
    conversations = to_conversations(rows, task=ref.task, system_prompt=settings.system_prompt, findings=findings)
    encoded = encode(conversations, settings.chat, settings.max_length, findings)
    used = {row.row for row in encoded.rows}
    found = ReadSet(ref, rows, [item for item in conversations if item.row in used], encoded, findings)
    if settings.on_bad_rows is not None:
        findings.settle(settings.on_bad_rows)
        found.require_rows()
    return found


def _duplicates(conversations: Sequence[Conversation]) -> int:
    distinct = {
        tuple(normalised(text) for text in [item.text or "", *(turn["content"] for turn in item.messages)])
        for item in conversations
    }
    return len(conversations) - len(distinct)


def _evaluation_ref(ref: DatasetRef, eval_dataset: str | None) -> tuple[DatasetRef | None, str | None]:
    if eval_dataset is None:
        if ref.path is None or ref.path.is_file():
            return None, None
        files = split_files(ref.path)
        split = next((split for split in ("validation", "test") if files[split]), None)
        return (ref, split) if split else (None, None)
    found = parse_dataset(eval_dataset)
    if found.path is None:
        return found, found.task.eval_split if found.task else "validation"
    found = replace(found, task=found.task or ref.task)
    if found.path is not None and found.path.is_dir():
        files = split_files(found.path)
        return found, next((split for split in ("validation", "test") if files[split]), "train")
    return found, None


def _notes(chat: ChatFormat, train: ReadSet) -> list[str]:
    folded = "the chat template has no system role: the system text stands at the top of the first user turn"
    has_system = any(item.messages and item.messages[0]["role"] == "system" for item in train.conversations)
    return chat.notes + ([folded] if chat.folds_system and has_system else [])


def _fingerprint(rows: Rows, encoded: Sequence[EncodedRow], settings: _Settings, ref: DatasetRef) -> str:
    facts = {
        "rows": rows.fingerprint,
        "task": ref.task.name if ref.task else None,
        "system_prompt": settings.system_prompt,
        "template": settings.chat.template,
        "max_length": settings.max_length,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for row in encoded:
        digest.update(array("q", row.input_ids).tobytes() + array("q", row.labels).tobytes())
    return digest.hexdigest()
