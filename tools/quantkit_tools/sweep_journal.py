"""Which steps of a sweep are done, by what their artifacts say, and what became of the others?

The artifacts are the truth: a step is done when an artifact of its name stands in the registry, whole, whose record has the
step's own settings. The journal, one file per step, adds what no artifact can say: that a step failed and why, and how long
it took. A single list of finished names would call a folder done that somebody has replaced.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.config import RunConfig
from quantkit.data.sources import parse_dataset
from quantkit.errors import QuantkitError
from quantkit.files import read_json, read_manifest, sha256_of, write_json
from quantkit.locks import Lock
from quantkit.memory import MemoryLog
from quantkit.spec import read_fields
from quantkit.sweeping import KEPT
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.records import ArtifactRecord
from quantkit_registry.store import Artifact, Registry
from quantkit_tools.sweep_planning import WHOLE, Step
from quantkit_tools.verdict import failed_gate

Outcome = Literal["done", "failed"]
State = Literal["done", "to do", "in the way"]
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is kept of a step that ran."""

    name: str
    outcome: Outcome
    artifact: str | None
    """Hash of the artifact it made."""
    duration_s: float
    error: str = ""
    data: str | None = None
    """sha256 of the training rows' file; None where they are no file."""
    peak_rss_bytes: int | None = None
    """Largest resident memory that the artifact's record names."""
    kind: str = "train"
    method: str = "NoQuant"
    policy: str = ""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a step stands now."""

    state: State
    detail: str = ""
    """Of what is done: why its gate marked it; else why it is to be done (again), or what is in its way."""
    artifact: str | None = None


class Journal:
    """The steps of one sweep, as far as they ran."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder / "steps"
        self._locks = folder.parent / ".locks"  # of all sweeps into this registry
        self._registry = Registry(root)
        self._hashes: dict[str | None, str | None] = {}

    def standing(self, step: Step) -> Standing:
        """Say whether a step is done, to do, or cannot be done because something else has its name."""
        entry = self._registry.entry(step.target) if step.target.is_dir() else None
        said = self.entry(step)
        if entry is None:
            failed = f"failed before: {said.error}" if said is not None and said.outcome == "failed" else ""
            return Standing("to do", failed)
        if entry.record is None or entry.hash is None:
            return Standing("in the way", entry.fault or "was not made by quantkit")
        if damage := _damage(entry):
            return Standing("in the way", damage)
        known = said is not None and said.artifact == entry.hash
        if known and said is not None and said.data != self._data(step):
            return Standing("in the way", f"was trained on other rows than {step.config.dataset_name} holds now")
        if not known and (difference := _difference(entry.record, step)):
            return Standing("in the way", difference)
        return Standing("done", failed_gate(entry), entry.hash)

    def entry(self, step: Step) -> Entry | None:
        """Return what is kept of a step; None where it never ran, or where its file cannot be read."""
        path = self._path(step)
        if not path.is_file():
            return None
        try:
            return read_fields(Entry, read_json(path), where=str(path))
        except QuantkitError:
            return None

    def write(self, step: Step, outcome: Outcome, *, duration_s: float, error: str = "") -> None:
        """Keep what became of a step."""
        made = self._registry.entry(step.target) if outcome == "done" else None
        stages = MemoryLog.from_dict(made.record.memory).overall() if made is not None and made.record is not None else None
        entry = Entry(
            name=step.name,
            outcome=outcome,
            artifact=None if made is None else made.hash,
            data=self._data(step),
            peak_rss_bytes=stages.peak_rss_bytes or None if stages is not None else None,
            duration_s=round(duration_s, 2),
            error=error,
            kind=step.kind,
            method=step.config.quant_method,
            policy=step.policy,
        )
        write_json(self._path(step), asdict(entry))

    def lock(self, step: Step) -> Lock:
        """Return the lock of a step; whoever works on it holds it."""
        return Lock(self._locks / f"{step.name}.lock")

    def expected(self, step: Step, *, alike: bool = False) -> tuple[float | None, int | None]:
        """Return mean seconds and largest memory in bytes of the finished steps most like this one; None where none ended.

        Those are of its method and merge policy, or, unless it is to be `alike`, where there are none, any of its kind.
        """
        done = [entry for entry in self._entries() if entry.outcome == "done" and entry.kind == step.kind]
        same = [entry for entry in done if entry.method == step.config.quant_method and entry.policy == step.policy]
        found = same if same or alike else done
        times = [entry.duration_s for entry in found]
        peaks = [entry.peak_rss_bytes for entry in found if entry.peak_rss_bytes is not None]
        return sum(times) / len(times) if times else None, max(peaks, default=None)

    def _data(self, step: Step) -> str | None:
        """Return the hash of the file of a step's training rows, computed once."""
        name = step.config.dataset_name
        if name not in self._hashes:
            path = parse_dataset(name).path if name else None
            self._hashes[name] = sha256_of(path) if path is not None and path.is_file() else None
        return self._hashes[name]

    def _entries(self) -> list[Entry]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(read_fields(Entry, read_json(path), where=str(path)))
            except QuantkitError:
                continue  # a damaged note costs an estimate
        return found

    def _path(self, step: Step) -> Path:
        key = hashlib.sha256(json.dumps(step.asks_for, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{key[:16]}.json"


def _damage(entry: Artifact) -> str:
    """Return which file of an artifact is missing or has another size than its manifest says; contents are not hashed here."""
    for name, said in (read_manifest(entry.path) or {}).items():
        path = entry.path / name
        if not path.is_file() or path.stat().st_size != said["size"]:
            return f"its {name} is not what its manifest says"
    return ""


def _difference(record: ArtifactRecord, step: Step) -> str:
    """Return in what an artifact is another than the step would make; empty where it is the same."""
    policy = KEPT if record.kind == "adapter" else WHOLE if record.merge is None else record.merge.policy
    if policy != step.policy:
        return f"was made otherwise ({policy})"
    if step.config.dataset_name is None:
        here = fingerprint_base(step.config.model_name_or_path, revision=step.config.revision)
        same = not record.training and record.base.fingerprint == here
        return "" if same else "is a snapshot of another base"
    settings = record.training.get("settings")
    try:
        trained = RunConfig(**settings) if isinstance(settings, dict) else None
    except (QuantkitError, TypeError):
        trained = None
    if trained is None:
        return "does not say with which settings it was trained"
    one, other = (_plain(config) for config in (trained, step.config))
    differing = sorted(name for name in one if one[name] != other.get(name))
    return f"was trained with {', '.join(f'{name} {one[name]!r}' for name in differing)}" if differing else ""


def _plain(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide what was trained; how its adapter was folded in is compared apart."""
    from quantkit.config import WITHOUT_EFFECT_ON_WEIGHTS

    left_out = WITHOUT_EFFECT_ON_WEIGHTS | {"merge", "merge_after_train"}
    left_out |= {"recompute", "gradient_checkpointing", "activation_offloading"}  # the same results in another memory
    return {name: value for name, value in config.to_dict().items() if name not in left_out}
