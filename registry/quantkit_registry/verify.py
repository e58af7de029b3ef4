"""Is an artifact still what it was when it was committed, and is what it says of itself true?

Each check stands for one way a label can lie: changed files, a record the tensors do not bear out, a name the record does
not bear out, another base under the same name, parents that are gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.errors import QuantkitError
from quantkit.files import verify_manifest
from quantkit_registry.detect import detect
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.names import ArtifactName, format_name, parse_name
from quantkit_registry.records import ArtifactRecord
from quantkit_registry.store import Artifact, Registry

Outcome = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check's outcome and what was found."""

    what: str
    outcome: Outcome
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"what": self.what, "outcome": self.outcome, "detail": self.detail}


def verify(registry: Registry, artifact: Artifact, *, claims: Mapping[str, str]) -> list[Check]:
    """Return the outcome of every check; a check that lacks what it needs here says so instead of passing."""
    if artifact.record is None:
        outcome: Outcome = "failed" if artifact.origin == "broken" else "not checked"
        return [Check("record", outcome, artifact.fault or "was not made by quantkit"), _detected(artifact, claims)]
    return [
        _manifest(artifact),
        _detected(artifact, claims),
        _name(artifact, artifact.record),
        _base(artifact.record),
        *_parents(registry, artifact.record),
    ]


def _manifest(artifact: Artifact) -> Check:
    try:
        verify_manifest(artifact.path)
    except (QuantkitError, OSError) as error:
        return Check("files", "failed", str(error))
    return Check("files", "ok", "sizes and sha256 are those of the manifest")


def _detected(artifact: Artifact, claims: Mapping[str, str]) -> Check:
    try:
        found = detect(artifact.path, claims=claims)
    except (QuantkitError, OSError) as error:
        return Check("weights", "failed", str(error))
    return Check("weights", "ok", "; ".join(f"{source}: {statement}" for source, statement in found.evidence))


def _name(artifact: Artifact, record: ArtifactRecord) -> Check:
    if artifact.name != record.name:
        there = (artifact.path.parent / record.name).exists()
        advice = (
            "that is beside it: remove one of the two, or move one elsewhere" if there else f"rename it back to {record.name}"
        )
        return Check("name", "failed", f"the folder is called {artifact.name}, the record says {record.name}; {advice}")
    try:
        faults = name_contradictions(record)
    except QuantkitError as error:
        faults = [str(error)]
    return Check("name", "failed" if faults else "ok", "; ".join(faults) or "says what the record says")


def name_contradictions(record: ArtifactRecord) -> list[str]:
    """Return where a record's name is not the one its recipe and stored weights give."""
    said = parse_name(record.name)
    stored = record.quantization.weights_dtype
    merged = record.kind == "model" and record.merge is not None
    differs = record.kind == "model" and stored != record.recipe.spec.weights_dtype
    set_apart = merged and said.merged_dtype == stored  # from the kept adapter of a dense base, which has the bare name
    policy = "base" if record.merge is not None and record.merge.policy == "base" else None
    wanted = ArtifactName.of(
        base=said.base,
        dataset=said.dataset,
        finetuning=said.finetuning or "SFT",
        adapter=record.adapter or record.recipe.adapter,
        recipe=record.recipe.spec,
        merged_dtype=stored if differs or set_apart else None,
        merge_policy=said.merge_policy if merged and not differs else policy if differs else None,
        named=named_settings(record),
    )
    settings = record.training.get("settings")
    trained = {**settings, **(settings.get("method_options") or {})} if isinstance(settings, Mapping) else {}
    faults = [
        f"named by {name} {value!r}, trained with {trained[name]!r}"
        for name, value in named_settings(record).items()
        if name in trained and trained[name] != value
    ]
    return faults + ([] if wanted == said else [f"recipe and weights give the name {format_name(wanted)}"])


def named_settings(record: ArtifactRecord) -> Mapping[str, Any]:
    """Return setting → value of the further settings that an artifact's name carries."""
    named = record.data.get("name_settings")
    return named if isinstance(named, Mapping) else {}


def _base(record: ArtifactRecord) -> Check:
    base = record.base
    if base.fingerprint is None:
        return Check("base", "not checked", f"no fingerprint of {base.name_or_path} was recorded")
    try:
        here = fingerprint_base(base.name_or_path, revision=base.revision)
    except (QuantkitError, OSError) as error:
        return Check("base", "not checked", f"{base.name_or_path} is not on this machine ({error})"[:300])
    if here != base.fingerprint:
        return Check("base", "failed", f"{base.name_or_path} has changed: {here[:19]}… here, {base.fingerprint[:19]}… recorded")
    return Check("base", "ok", f"{base.name_or_path} has the recorded content ({here[:19]}…)")


def _parents(registry: Registry, record: ArtifactRecord) -> list[Check]:
    hashes = {artifact.hash for artifact in registry.artifacts()} if record.parents else set()
    checks = []
    for parent in record.parents:
        there = parent.artifact in hashes if parent.artifact else Path(registry.root / parent.name).is_dir()
        text = f"{parent.name} is in {registry.root}" if there else f"{parent.name} is not in {registry.root}"
        checks.append(Check("parent", "ok" if there else "not checked", text))
    return checks
