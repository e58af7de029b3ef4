"""What had a killed evaluation finished already?

Each answer is appended, one JSON line, to a file beside the results as soon as it is there; the next run under the same key
(artifact, rows, settings, versions) takes it from there. A kill loses nothing, since the line is with the operating system at
once; a power failure loses the last second, since making each line durable would wait for the disk at every answer. A file
under another key is begun afresh, and a line that was cut off is dropped with all after it. Saving the whole state now and
then, the usual checkpoint, would lose what came after the last one and write the same answers many times.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quantkit.console import warn
from quantkit.errors import UsageError
from quantkit.evaluation.generation import Generation
from quantkit.locks import Lock

SCHEMA_VERSION = 1
SYNC_EVERY_S = 1.0
SUFFIX = ".unfinished.jsonl"
ANSWER, LIKELIHOOD = "answer", "likelihood"


class Journals:
    """The journals of one artifact's evaluation, one per task, in the folder of its results."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        """With `fresh` what earlier runs left is set aside."""
        self._folder, self._fresh = folder, fresh

    def open(self, task: str, key: Mapping[str, Any]) -> "Journal":
        """Return the journal of a task; whatever was written under another key is gone.

        Raises:
            UsageError: the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self._folder}: results cannot be written: {error.strerror or error}; --registry names another folder"
            ) from None
        return Journal(self._path(task), key, fresh=self._fresh)

    def discard(self, task: str) -> None:
        """Remove the journal of a task whose result is filed."""
        self._path(task).unlink(missing_ok=True)

    def _path(self, task: str) -> Path:
        return self._folder / f".{task}{SUFFIX}"


class Journal:
    """What one task has finished: values that JSON can hold, by kind (`answer`, `loss`, …) and number of the request.

    While another process writes the same journal, this one keeps its values to itself.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        self._entries: dict[str, dict[int, Any]] = {}
        self._stream: Any = None
        self._synced = time.monotonic()
        header = {"schema_version": SCHEMA_VERSION, "key": dict(key)}
        self._lock = Lock(path.with_name(path.name + ".lock"))
        if not self._lock.acquire():
            warn(f"{path}: another process is at the same evaluation; this one cannot go on from it if it breaks off")
            return
        try:
            kept = 0 if fresh else self._read(header)
            self._stream = path.open("r+b" if kept else "wb")
            self._stream.truncate(kept)
            self._stream.seek(kept)
            if not kept:
                self._write(header)
        except OSError as error:
            self.close()
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
        self.resumed = {kind: len(found) for kind, found in self._entries.items()}

    resumed: Mapping[str, int] = {}
    """How many values of each kind an earlier run had left."""

    def known(self, kind: str) -> dict[int, Any]:
        """Return number → value of what is finished."""
        return dict(self._entries.get(kind, {}))

    def add(self, kind: str, number: int, value: Any) -> None:
        """Keep one value; where the disk takes no more, that is said once and the evaluation goes on."""
        self._entries.setdefault(kind, {})[number] = value
        try:
            self._write({"kind": kind, "number": number, "value": value})
        except OSError as error:
            warn(
                f"{self.path}: cannot be written: {error.strerror or error}; if this run breaks off, it starts again from here"
            )
            self.close()

    def close(self) -> None:
        """Make all durable and let go of the file."""
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                with stream:
                    os.fsync(stream.fileno())
        except OSError:
            pass  # a full disk: said when the line was written
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._stream is None:
            return
        self._stream.write(json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        self._stream.flush()
        if time.monotonic() - self._synced >= SYNC_EVERY_S:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def _read(self, header: Mapping[str, Any]) -> int:
        """Take what is under this key; return the bytes up to the end of the last whole line, 0 where nothing can be used."""
        if not self.path.is_file():
            return 0
        kept = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream):
                entry = _object(line)
                if number == 0:
                    if entry != json.loads(json.dumps(header)):
                        return 0
                elif _is_entry(entry):
                    self._entries.setdefault(entry["kind"], {})[entry["number"]] = entry["value"]
                else:
                    break
                kept += len(line)
        return kept


def fingerprint_of(requests: Sequence[Any]) -> str:
    """Return a sha256, hexadecimal, of the token ids that are asked; it changes with rows, template and tokenizer."""
    return hashlib.sha256(json.dumps(requests).encode()).hexdigest()


def keep_answer(journal: Journal, number: int, answer: Generation) -> None:
    """Keep one answer."""
    journal.add(ANSWER, number, asdict(answer))


def kept_answers(journal: Journal, count: int) -> dict[int, Generation]:
    """Return the answers to the first `count` requests that an earlier run had left; what is none is left out."""
    found = {}
    for number, value in journal.known(ANSWER).items():
        if 0 <= number < count and isinstance(value, dict) and set(value) == {"text", "tokens", "stopped"}:
            tokens = value["tokens"]
            if isinstance(value["text"], str) and isinstance(tokens, list) and all(isinstance(token, int) for token in tokens):
                found[number] = Generation(value["text"], tuple(tokens), bool(value["stopped"]))
    return found


def keep_likelihood(journal: Journal, number: int, likelihood: tuple[float, bool]) -> None:
    """Keep the log-likelihood of one request; one that is not finite stops the evaluation and is not kept."""
    if math.isfinite(likelihood[0]):
        journal.add(LIKELIHOOD, number, list(likelihood))


def kept_likelihoods(journal: Journal, count: int) -> dict[int, tuple[float, bool]]:
    """Return the log-likelihoods of the first `count` requests that an earlier run had left; what is none is left out."""
    found = {}
    for number, value in journal.known(LIKELIHOOD).items():
        if 0 <= number < count and isinstance(value, list) and [type(item) for item in value] == [float, bool]:
            found[number] = (value[0], value[1])
    return found


def _object(line: bytes) -> Any:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"kind", "number", "value"}
        and isinstance(entry["kind"], str)
        and isinstance(entry["number"], int)
    )
