"""Which artifacts and results stand in a registry, for a report? All of them, each file read as a stranger's.

A damaged file costs its own result and is named; stopping at the first one would let one truncated file hide a hundred
results. Results whose artifact is gone, or was never in the registry (a base), are kept: they were measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError, UsageError, did_you_mean
from quantkit.evaluation.results import ArtifactResult, TaskResult
from quantkit.headers import read_object
from quantkit.reporting.facts import NO_ADAPTER, Subject, about_result
from quantkit_registry.lineage import lineage
from quantkit_registry.store import HASH, RESULTS, TASK, Artifact, Registry

Filed = dict[str, list[tuple[TaskResult, ArtifactResult | None]]]


def read_subjects(registry: Registry, wanted: Sequence[str] = ()) -> tuple[list[Subject], list[str]]:
    """Return the artifacts of a registry that were named (all, where none was) with their results, and what cannot be read.

    Raises:
        UsageError: nothing here has a name, path or hash that was asked for, or the root is no folder.
    """
    filed, faults = _read_results(registry)
    entries = registry.entries()
    faults += [f"{entry.name} is broken and left out: {entry.fault}" for entry in entries if entry.fault]
    ours = [entry for entry in entries if entry.origin == "quantkit"]
    outside = [entry for name in wanted if (entry := _outside(registry, name)) is not None]
    known = {entry.hash for entry in ours} | {entry.hash for entry in outside}
    subjects = [_subject(registry, entry, filed) for entry in [*ours, *outside]]
    subjects += [_measured(hash_, results) for hash_, results in sorted(filed.items()) if hash_ not in known]
    chosen = subjects if not wanted else _chosen(subjects, wanted)
    if not wanted:
        theirs = [entry.name for entry in entries if entry.origin in ("study", "foreign")]
        named = {subject.name for subject in subjects}
        faults += [
            f"{name} was not written by quantkit and has no results under its name" for name in theirs if name not in named
        ]
    ordered = sorted(chosen, key=lambda subject: (subject.name.casefold(), subject.artifact))
    return [replace(subject, number=number) for number, subject in enumerate(ordered, 1)], faults


def _read_results(registry: Registry) -> tuple[Filed, list[str]]:
    found: Filed = {}
    faults: list[str] = []
    root = registry.root / RESULTS
    try:
        folders = sorted(path for path in root.iterdir() if HASH.fullmatch(path.name)) if root.is_dir() else []
        files = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    except OSError as error:
        raise UsageError(f"{root}: cannot be read: {error.strerror or error}") from None
    for path in files:
        if not TASK.fullmatch(path.stem):
            continue
        try:
            data = read_object(path)
            result = TaskResult.from_dict(data)
            found.setdefault(path.parent.name, []).append((result, about_result(data)))
        except QuantkitError as error:
            faults.append(f"A result was left out: {RESULTS}/{path.parent.name[:12]}…/{path.name}: {_short(error, path)}")
    return found, faults


def _short(error: QuantkitError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _subject(registry: Registry, entry: Artifact, filed: Filed) -> Subject:
    record, results = entry.record, filed.get(entry.hash or "", [])
    known = _measured(entry.hash or "", results)
    if record is None:  # a folder of others that was named by its path
        return replace(known, name=entry.name, size_bytes=entry.size_bytes)
    base = Path(record.base.name_or_path)
    return replace(
        known,
        name=entry.name,
        kind=record.kind,
        method=record.recipe.method,
        peft=NO_ADAPTER if record.adapter is None else record.adapter.label,
        base=base.name if base.is_absolute() else record.base.name_or_path,
        quantization=record.quantization.to_dict(),
        size_bytes=entry.size_bytes if known.size_bytes is None else known.size_bytes,
        here=True,
        record=record.to_dict(),
        lineage=lineage(registry, entry).lines(),
    )


def _measured(hash_: str, results: Sequence[tuple[TaskResult, ArtifactResult | None]]) -> Subject:
    """Return what results alone tell of an artifact."""
    abouts = [said for _, said in results if said is not None]
    about = abouts[0] if abouts else None
    quantization: Mapping[str, Any] = {} if about is None else about.quantization
    return Subject(
        number=0,
        name=hash_[:12] if about is None else about.name,
        artifact=hash_,
        kind="model" if about is None else about.kind,
        method=str(quantization.get("method") or "unknown"),
        peft="unknown" if about is None or about.kind == "adapter" else NO_ADAPTER,
        quantization=quantization,
        size_bytes=next((said.size_bytes for said in abouts if said.size_bytes is not None), None),
        bits_per_weight=next((said.bits_per_weight for said in abouts if said.bits_per_weight is not None), None),
        here=False,
        evidence=() if about is None else about.evidence,
        memory={"stages": _stages(abouts)},
        results=[result for result, _ in results],
    )


def _stages(abouts: Sequence[ArtifactResult]) -> list[Any]:
    """Return the stages of all evaluations, each once: tasks may have been evaluated in separate runs."""
    found: dict[tuple[str, str], Any] = {}
    for about in abouts:
        stages = about.memory.get("stages")
        for stage in stages if isinstance(stages, list) else ():
            if isinstance(stage, Mapping):
                found.setdefault((str(stage.get("inside")), str(stage.get("stage"))), stage)
    return list(found.values())


def _outside(registry: Registry, name: str) -> Artifact | None:
    """Return the artifact at a path outside the registry; None for a name, and for what has no hash to find results by."""
    path = Path(name)
    if not path.is_dir() or path.resolve().parent == registry.root.resolve():
        return None
    entry = registry.entry(path)
    return entry if entry is not None and entry.origin == "quantkit" else None


def _chosen(subjects: Sequence[Subject], wanted: Sequence[str]) -> list[Subject]:
    """Return the subjects named by name, path or beginning of a hash; several contents of one name are all meant."""
    chosen: dict[int, Subject] = {}
    for word in wanted:
        fits = [
            index
            for index, subject in enumerate(subjects)
            if subject.name in (word, Path(word).name)
            or (len(word) >= 4 and subject.artifact.startswith(word.removeprefix("sha256:")))
        ]
        if not fits:
            names = [subject.name for subject in subjects]
            raise UsageError(f"nothing here is called {word!r}, and no result names it.{did_you_mean(word, names)}")
        chosen |= {index: subjects[index] for index in fits}
    return list(chosen.values())
