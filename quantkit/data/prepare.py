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
from quantkit.data.encode import EncodedRow, encode
from quantkit.data.findings import Findings, OnBadRows, normalised
from quantkit.data.report import DataReport, TokenCounts
from quantkit.data.schemas import Conversation, kind_of, to_conversations
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
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}; a row needs at least 2 tokens")
    ref = parse_dataset(dataset)
    chat = ChatFormat(tokenizer, stop_token_ids)
    settings = _Settings(chat, max_length, system_prompt, on_bad_rows)
    rows = read_rows(ref, limit=trunc_train)
    train = _prepare(rows, ref, settings)
    eval_ref, split = _evaluation_ref(ref, eval_dataset)
    evaluation = _prepare(read_rows(eval_ref, split=split), eval_ref, settings) if eval_ref else None
    questions = train.questions
    overlap = sum(key in questions for key in evaluation.keys) if evaluation else 0
    report = replace(
        train.report,
        overlap=overlap,
        notes=(*train.report.notes, *_notes(chat, train)),
        evaluation=evaluation.report if evaluation else None,
    )
    return PreparedData(
        name=ref.tag,
        train=train.rows,
        evaluation=evaluation.rows if evaluation else [],
        fingerprint=_fingerprint(rows, train.rows, settings, ref),
        report=report,
        system_prompt=(ref.task.system_prompt if ref.task else "") if system_prompt is None else system_prompt,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    chat: ChatFormat
    max_length: int
    system_prompt: str | None
    on_bad_rows: OnBadRows


@dataclass(frozen=True, slots=True)
class _Set:
    rows: list[EncodedRow]
    keys: list[str]
    report: DataReport
    has_system: bool

    @property
    def questions(self) -> set[str]:
        return set(self.keys)


def _prepare(rows: Rows, ref: DatasetRef, settings: _Settings) -> _Set:
    findings = Findings(rows.place)
    conversations = to_conversations(rows, task=ref.task, system_prompt=settings.system_prompt, findings=findings)
    encoded = encode(conversations, settings.chat, settings.max_length, findings)
    findings.settle(settings.on_bad_rows)
    if not encoded.rows:
        raise UsageError(f"{rows.source}: none of {len(rows.rows)} rows can be used; the first: {findings.first_bad}")
    used = {row.row for row in encoded.rows}
    kept = [item for item in conversations if item.row in used]
    lengths = [len(row.input_ids) for row in encoded.rows]
    report = DataReport(
        source=rows.source,
        kind=kind_of(dict.fromkeys(column for row in rows.rows for column in row), rows.source, ref.task),
        rows_read=len(rows.rows),
        rows_used=len(encoded.rows),
        dropped=dict(findings.dropped),
        truncated=encoded.truncated,
        tokens=sum(lengths),
        longest=max(lengths),
        supervised=TokenCounts.of(encoded.rows),
        duplicates=_duplicates(kept),
        conversions=tuple(findings.conversion_lines()),
        notes=(f"{encoded.unlearnt} earlier responses are not learnt: the chat template rewrites them once later turns follow",)
        if encoded.unlearnt
        else (),
    )
    has_system = any(item.messages and item.messages[0]["role"] == "system" for item in kept)
    return _Set(encoded.rows, [item.key for item in kept], report, has_system)


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


def _notes(chat: ChatFormat, train: _Set) -> list[str]:
    folded = "the chat template has no system role: the system text stands at the top of the first user turn"
    return chat.notes + ([folded] if chat.folds_system and train.has_system else [])


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
