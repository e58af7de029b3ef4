r"""Where do the rows of `dataset` come from? One small grammar answers for scripts, flags and files alike.

| written | read as |
|---|---|
| `openmath`, `squad`, `arc`, `boolq` | that data set from the hub, with its system prompt and response rule |
| `openmath:/path/train.parquet` | local rows (file or folder) under the same prompt and rule |
| `/path/rows.jsonl`, `folder/` | local rows; the columns decide how they are read; no system prompt, answers as they are |
| `owner/name`, `owner/name:subset` | a hub data set through `datasets`; columns decide |
| `…@split` after a built-in name or hub id | that split of it, e.g. `nvidia/OpenMathInstruct-2@train_1M` |

A separate `data_files` setting, as in `datasets`, would leave two settings that can contradict each other.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from quantkit.data.hub import hub_rows
from quantkit.data.readers import READERS, Part, read_file
from quantkit.data.tasks import DATASETS, DatasetInfo
from quantkit.errors import UsageError, did_you_mean
from quantkit.headers.plain import entries, refuse_links_out

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<subset>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "validation": "validation"}
SPLIT_WORDS |= dict.fromkeys(("valid", "val", "dev", "eval"), "validation")


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """What a `dataset` setting points to: a path or a hub id, with the built-in task that was named, if any."""

    written: str
    path: Path | None = None
    hub_id: str = ""
    subset: str | None = None
    split: str | None = None
    task: DatasetInfo | None = None

    @property
    def tag(self) -> str:
        """Return a short tag of letters, digits and dots for artifact names: the task's name, else the file's or hub id's.

        >>> DatasetRef("", path=Path("data/train-fiqa_v2.jsonl")).tag
        'fiqav2'
        """
        if self.task:
            return self.task.name
        names = [self.path.stem, self.path.absolute().parent.name] if self.path else [self.hub_id.split("/")[-1]]
        for name in names:
            words = [word for word in re.split(r"[^A-Za-z0-9.]+", name) if word.lower() not in SPLIT_WORDS]
            if tag := re.sub(r"\.{2,}", ".", "".join(words)).strip(".")[:40].strip("."):
                return tag
        return "data"


def parse_dataset(written: str | Path) -> DatasetRef:
    """Read a `dataset` setting; the grammar stands at the top of this module.

    Raises:
        UsageError: it is no built-in name, no existing path and no hub id; the closest name is suggested.
    """
    text = str(written)
    name, _, split = text.partition("@")
    if name in DATASETS:
        info = DATASETS[name]
        return DatasetRef(text, hub_id=info.hub_id, subset=info.subset, split=split or None, task=info)
    path = Path(text).expanduser()
    if text and _exists(path):
        return DatasetRef(text, path=path)
    head, colon, rest = text.partition(":")
    if head in DATASETS and colon:
        path = Path(rest).expanduser()
        if not rest or not _exists(path):
            raise UsageError(f"dataset {text!r}: there is no file or folder {rest!r}.{_neighbour(path)}")
        return DatasetRef(text, path=path, task=DATASETS[head])
    if colon and rest and _exists(Path(rest).expanduser()):
        raise UsageError(
            f"dataset {text!r}: no built-in data set is called {head!r}.{did_you_mean(head, DATASETS)} Known names:"
            f" {', '.join(DATASETS)}; a file whose columns decide stands alone."
        )
    looks_local = path.suffix.lower() in READERS or text.startswith((".", "/", "~")) or text.count("/") > 1
    if not looks_local and (match := HUB_ID.fullmatch(text)):
        return DatasetRef(text, hub_id=match["id"], subset=match["subset"], split=match["split"])
    if looks_local:
        raise UsageError(f"dataset {text!r}: there is no such file or folder.{_neighbour(path)}")
    raise UsageError(
        f"dataset {text!r} is no file, no folder and no built-in name.{did_you_mean(head, DATASETS)}"
        f" Known names: {', '.join(DATASETS)}; hub ids are written owner/name."
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _neighbour(path: Path) -> str:
    try:
        return did_you_mean(path.name, [item.name for item in path.parent.iterdir()])
    except OSError:
        return f" The folder {str(path.parent)!r} is not there either." if not path.parent.exists() else ""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as the source holds them, their origin, and a sha256 that changes when the source or `limit` does."""

    rows: list[dict[str, Any]]
    source: str
    fingerprint: str
    parts: tuple[Part, ...] = ()
    _ends: list[int] = field(default_factory=list)

    def place(self, row: int) -> str:
        """Return where row number `row` (from 1) stands: `train.jsonl line 7`."""
        index = bisect_right(self._ends, row - 1)
        if index >= len(self.parts):
            return f"{self.source} row {row}"
        part = self.parts[index]
        start = self._ends[index] - len(part.numbers)
        return f"{part.path} {part.unit} {part.numbers[row - 1 - start]}"


def read_rows(source: str | Path | DatasetRef, *, split: str | None = None, limit: int | None = None) -> Rows:
    """Read the first `limit` rows (None: all) of a file, a folder or a hub data set.

    `split` (train, validation or test; default train) chooses among a folder's files by their names, and among a hub data
    set's splits; a single file is read whatever its name says.

    Raises:
        UsageError: something cannot be read or holds no rows; file, line and reason are named.
    """
    ref = source if isinstance(source, DatasetRef) else parse_dataset(source)
    if limit is not None and limit < 1:
        raise UsageError(f"the number of rows to read is {limit}; it must be at least 1")
    if ref.path is None:
        return _from_hub(ref, split, limit)
    paths = [ref.path] if ref.path.is_file() else split_files(ref.path)[split or "train"]
    if not paths:
        raise UsageError(f"{ref.path}: no {split or 'train'} file ({', '.join(READERS)}) in this folder")
    parts: list[Part] = []
    digest = hashlib.sha256(f"limit={limit}".encode())
    for path in paths:
        left = None if limit is None else limit - sum(len(part.rows) for part in parts)
        if left == 0:
            break
        parts.append(read_file(path, left))
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    rows = [row for part in parts for row in part.rows]
    if not rows:
        raise UsageError(f"{ref.path}: holds no rows")
    ends = list(accumulate(len(part.numbers) for part in parts))
    bare = tuple(Part(part.path, part.unit, part.numbers, []) for part in parts)
    return Rows(rows, str(ref.path), digest.hexdigest(), bare, ends)


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Sort a folder's row files into train, validation and test by the words in their names (or their folders' names).

    Files that name no split belong to train.

    Raises:
        UsageError: the folder holds a link that leads out of it, to where no links are let lead.
    """
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    refuse_links_out(folder)
    for path in sorted(entries(folder)):
        inside = path.relative_to(folder)
        if path.suffix.lower() in READERS and path.is_file() and not any(part.startswith(".") for part in inside.parts):
            words = re.split(r"[^a-z]+", " ".join(reversed(inside.with_suffix("").parts)).lower())
            found[next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")].append(path)
    return found


def _from_hub(ref: DatasetRef, split: str | None, limit: int | None) -> Rows:
    chosen = ref.split or split or "train"
    source = f"{ref.hub_id}{f':{ref.subset}' if ref.subset else ''}@{chosen}"
    rows = hub_rows(ref.hub_id, ref.subset, chosen, limit)
    if not rows:
        raise UsageError(f"data set {source} holds no rows")
    return Rows(rows, source, _hash_rows(rows))


def _hash_rows(rows: Iterable[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
