"""Which files are results, and whose? Told by content, never by a file's name.

A folder is searched for results and may hold anything else; a file that was named must be one. Folders of models are passed by:
their JSON is no result. Everything is read as hostile: sizes, types and counts are limited before anything is done with them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantkit.audit import read_lmeval, read_quantkit, read_study
from quantkit.audit.facts import Reading
from quantkit.audit.tables import MAX_BYTES, read_csv, read_jsonl
from quantkit.errors import UsageError
from quantkit.files import read_json

MAX_FILES = 20_000
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
OF_A_MODEL = {"config.json", "adapter_config.json", "quantization_metadata.json"}
VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}
"""Tokens with numbers, among them the names of all metrics."""
OTHER = "other"


def read_paths(paths: Sequence[Path]) -> list[Reading]:
    """Read files, and all results below folders.

    A file that cannot be read is a `Reading` with faults; one below a folder that is no result has the kind `other`.

    Raises:
        UsageError: a path does not exist, or a folder holds too many files.
    """
    readings: list[Reading] = []
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        named = path.is_file()
        for file in [path] if named else list(files_below(path)):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                readings.append(read_file(file, named=named))
    return without_used_samples(readings)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder that could be a result, in order of names; folders of models are left out."""
    count = 0
    for here, folders, names in os.walk(folder):
        if OF_A_MODEL & set(names) and Path(here) != folder:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and name not in VOCABULARIES:
                count += 1
                if count > MAX_FILES:
                    raise UsageError(f"{folder}: more than {MAX_FILES} files; name the folder of the results")
                yield Path(here) / name


def read_file(path: Path, *, named: bool = True) -> Reading:
    """Read one file; what is wrong with it stands in `faults`."""
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            header, table = read_csv(path)
            reading = read_study.read_table(str(path), header, table)
        elif path.suffix.lower() == ".jsonl":
            lines = read_jsonl(path)
            reading = read_lmeval.read_samples_file(str(path), lines) or read_study.read_lines(str(path), lines)
        else:
            reading = read_data(path, read_json(path, max_bytes=MAX_BYTES))
    except UsageError as error:
        if isinstance(error, read_study.UnfitError) and not named:
            return Reading(file=str(path), kind=OTHER)
        return Reading(file=str(path), kind="unreadable", faults=(str(error),))
    if reading is not None:
        return reading
    if not named:
        return Reading(file=str(path), kind=OTHER)
    said = f"{path}: no result of quantkit or lm-eval, and no model with a metric (exact_match, accuracy, perplexity, …) in it"
    return Reading(file=str(path), kind="unreadable", faults=(said,))


def read_data(path: Path, data: Any) -> Reading | None:
    """Return what a JSON file's data says; None where it is no result."""
    for reader in (read_quantkit.read, read_lmeval.read, read_study.read):
        try:
            if (reading := reader(str(path), data)) is not None:
                return reading
        except (RecursionError, json.JSONDecodeError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from None
    return None


def without_used_samples(readings: list[Reading]) -> list[Reading]:
    """Leave out lm-eval's sample files that the results beside them have been read with."""
    used = {
        file for reading in readings if reading.kind == read_lmeval.KIND for file in read_lmeval.samples_beside(reading.file)
    }
    return [item for item in readings if item.kind != read_lmeval.SAMPLES or str(Path(item.file)) not in used]
