"""Which rows are asked? Files, folders and built-in names, read as training reads them, sampled by seed.

`limit` draws rows at random (the same for every model under one seed) and keeps their order; the first rows of a file that
is sorted by topic or length would stand for that topic only.
"""

import hashlib
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from quantkit.data.arithmetic import arithmetic_data
from quantkit.data.conversations import to_conversations
from quantkit.data.schemas import Conversation
from quantkit.data.sources import DatasetRef, Rows, parse_dataset, read_rows, split_files
from quantkit.errors import UsageError, did_you_mean
from quantkit.evaluation.answers import Option
from quantkit.evaluation.plugged import known_tasks
from quantkit.evaluation.tasks import TASKS, Example, Task, guess_kind

AUTO = "auto"
GENERATED_ROWS = 60
"""Rows of each generated set."""


def read_tasks(
    data: Sequence[str] = (),
    *,
    kind: str = AUTO,
    limit: int | None = None,
    seed: int = 0,
    system_prompt: str | None = None,
) -> list[Task]:
    """Return one task per data set (grammar of `quantkit.data.sources`); without any, the two generated arithmetic sets.

    `system_prompt` None leaves the built-in data set's own, the empty string means none.

    Raises:
        UsageError: a kind is unknown, a file cannot be read, or its rows do not fit the kind; file and row are named.
    """
    chosen = None if kind == AUTO else _task(kind)
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; at least one row is needed")
    if data:
        sets = [(_name(ref), _rows(ref), ref) for ref in map(parse_dataset, data)]
    else:
        generated = arithmetic_data(train=1, held_out=GENERATED_ROWS)
        sets = [
            (name, Rows(list(getattr(generated, name)), f"generated {name}", ""), DatasetRef(name))
            for name in ("unseen_numbers", "unseen_templates")
        ]
    tasks = []
    for name, rows, ref in sets:
        conversations = to_conversations(rows, task=ref.task, system_prompt=system_prompt)
        everything = [_example(conversation) for conversation in conversations]
        asked = everything
        if limit is not None and limit < len(everything):
            asked = [everything[at] for at in sorted(random.Random(seed).sample(range(len(everything)), limit))]
        task = chosen or TASKS[ref.task.judged_as if ref.task else guess_kind(everything)]
        tasks.append(
            task(
                name=name,
                source=rows.source,
                fingerprint=_fingerprint(asked),
                examples=tuple(asked),
                **task.decided_by(everything),
            )
        )
    require_distinct_names([task.name for task in tasks])
    return tasks


def require_distinct_names(names: Sequence[str]) -> None:
    """Raise `UsageError` where two data sets share a name, under which their results would be filed."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two data sets are called {name!r}; give one of them another file name")


def _task(kind: str) -> type[Task]:
    """Return the task of this name, one of quantkit's own before plugins are asked."""
    if kind in TASKS:
        return TASKS[kind]
    known = known_tasks()
    if kind in known.tasks:
        return known.tasks[kind]
    if kind in known.broken:
        raise UsageError(f"task {kind!r} is not available: {known.broken[kind]}")
    names = [AUTO, *known.tasks]
    broken = f" Left out: {'; '.join(known.broken.values())}." if known.broken else ""
    raise UsageError(f"no task is called {kind!r}.{did_you_mean(kind, names)} Known: {', '.join(names)}.{broken}")


def _example(conversation: Conversation) -> Example:
    return Example(
        row=conversation.row,
        messages=tuple(conversation.messages[: conversation.last_response + 1]),
        answers=conversation.answers,
        options=tuple(Option(label, text) for label, text in conversation.options),
        text=conversation.text,
    )


def _rows(ref: DatasetRef) -> Rows:
    if ref.path is None:
        if ref.split is None and ref.task is None:
            raise UsageError(f"data set {ref.written!r}: say which split to evaluate on, e.g. {ref.written}@test")
        return read_rows(ref, split=ref.split or (ref.task.eval_split if ref.task else None))
    if ref.path.is_file():
        return read_rows(ref)
    found = split_files(ref.path)
    return read_rows(ref, split=next((split for split in ("test", "validation") if found[split]), "train"))


def _name(ref: DatasetRef) -> str:
    """Return the tag results are filed under: `unseen_numbers`, `openmath-test`, `arc-validation`."""
    if ref.path is None:
        parts = [ref.tag, ref.split or (ref.task.eval_split if ref.task else "")]
    else:
        parts = [ref.task.name if ref.task else "", Path(ref.path).resolve().stem]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)).strip("-.")[:80] or "data"


def _fingerprint(examples: Sequence[Example]) -> str:
    """Return a sha256 over questions, references and texts; system prompts are a setting, not data."""
    digest = hashlib.sha256()
    for example in examples:
        turns: list[object] = [[turn["role"], turn["content"]] for turn in example.messages if turn["role"] != "system"]
        turns += [[example.text]] if example.text is not None else []
        turns += [list(example.answers)] if example.answers else []
        digest.update(json.dumps(turns, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
