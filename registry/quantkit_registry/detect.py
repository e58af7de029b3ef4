"""What is in this folder or hub id, and by which method must it be loaded?

Witnesses are heard in one order: the explicit choice, our record, `quantization_config`, the tensors, and last the name,
which is only ever printed. Where two of them disagree nothing is chosen for the user: the error names both sides. The
alternative, searching method names in the path with `NoQuant` first, labelled a whole study's 4-bit models as 16-bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.headers import StoredWeights, read_object, read_stored_weights, refuse_links_out
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec, QuantMethod
from quantkit_registry import study
from quantkit_registry.adapters import ADAPTER_CONFIG, read_adapter
from quantkit_registry.hints import hint_of
from quantkit_registry.records import RECORD_FILE, ArtifactRecord, read_record

UNKNOWN = "unknown"
WEIGHT_FILES = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What was found, and on whose word."""

    path: str
    """The local folder or file, or the hub id."""
    kind: Literal["model", "adapter"]
    method: str
    """The method to load it by; `unknown` where no witness could tell."""
    spec: QuantizationSpec | None
    """What the weights are (of an adapter: the base's it is loaded on); None where that is not known."""
    format: str | None
    """Storage format, e.g. `bitsandbytes`; None for an adapter whose base is not known."""
    evidence: tuple[tuple[str, str], ...]
    """(source, statement) in the order of weight."""
    record: ArtifactRecord | None = field(default=None, repr=False)
    base: str | None = None
    """Of an adapter: hub id or path of its base."""
    revision: str | None = None
    """Commit of the hub id; of an adapter: of its base."""
    plan: QuantizationPlan | None = field(default=None, repr=False)
    """Of an adapter of ours: the plan by which its base is loaded. Stored models need none."""
    stored: StoredWeights | None = None
    origin: Literal["quantkit", "study", "foreign"] = "foreign"
    """Whose metadata the folder carries."""

    @property
    def source_fields(self) -> dict[str, Any]:
        """Return the arguments of `quantkit.modeling.ModelSource`."""
        names = ("path", "kind", "base", "revision", "plan", "spec")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "path": self.path,
            "kind": self.kind,
            "method": self.method,
            "spec": None if self.spec is None else self.spec.to_dict(),
            "format": self.format,
            "base": self.base,
            "revision": self.revision,
            "origin": self.origin,
            "name": None if self.record is None else self.record.name,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "evidence": [{"source": source, "statement": statement} for source, statement in self.evidence],
        }


def detect(
    path_or_id: str | Path, *, claims: Mapping[str, str], explicit: str | None = None, revision: str | None = None
) -> Detection:
    """Return what a folder, a weight file or a hub id holds.

    `claims` maps storage kinds to the methods that read bare checkpoints of that kind (`Methods.claims()`). `explicit` is
    the user's own choice of method: it overrules metadata, never the tensors.

    Raises:
        UsageError: nothing that can be loaded is there, or a file is damaged.
        VerificationError: witnesses disagree; the text names both.
    """
    folder = Path(path_or_id)
    if folder.exists():
        return _detect_local(folder, str(path_or_id), claims, explicit, revision, weights=True)
    text = str(path_or_id)
    if text.startswith((".", "/", "~")) or text.endswith(WEIGHT_FILES):
        raise UsageError(f"{text}: no such file or folder")
    from quantkit_registry.hub import describe_hub_id

    snapshot = describe_hub_id(text, revision)
    return _detect_local(snapshot, text, claims, explicit, snapshot.name, weights=False)


def _detect_local(
    folder: Path, path: str, claims: Mapping[str, str], explicit: str | None, revision: str | None, *, weights: bool
) -> Detection:
    if folder.is_dir():
        refuse_links_out(folder)
    said = (("explicit choice", f"method {explicit}"),) if explicit else ()
    hint = hint_of(Path(path).name)
    last = (("name", hint),) if hint else ()
    if folder.is_file() and folder.suffix.lower() not in WEIGHT_FILES:
        raise UsageError(f"{path}: a folder, a .safetensors or a .gguf file is wanted; pickled weights are not opened")
    if folder.is_dir() and (folder / ADAPTER_CONFIG).is_file():
        _refuse_two_kinds(folder)
        found = _adapter(folder, path, claims, explicit, weights=weights)
    else:
        _refuse_empty(folder)
        found = _model(folder, path, claims, explicit, weights=weights)
    own = revision if found.kind == "model" else found.revision
    return replace(found, evidence=(*said, *found.evidence, *last), revision=own)


def _model(folder: Path, path: str, claims: Mapping[str, str], explicit: str | None, *, weights: bool) -> Detection:
    stored = read_stored_weights(folder, weights=weights)
    record, claim = _metadata(folder)
    evidence = list(stored.evidence)
    method = claims.get(stored.kind, UNKNOWN)
    spec = stored.to_spec(method)
    if record is not None:
        evidence.insert(0, (RECORD_FILE, f"{record.name}, {record.quantization.method}"))
        found = stored.contradictions(record.quantization)
        found = [*found, f"kind {record.kind!r} (the folder holds a model)"] if record.kind != "model" else found
        _settle(path, RECORD_FILE, found, explicit, evidence)
        if not found:
            method, spec = record.quantization.method, record.quantization
    elif claim is not None:
        evidence.insert(0, (claim.file, f"{claim}"))
        _settle(path, claim.file, claim.contradictions(stored), explicit, evidence)
    if method == UNKNOWN and not explicit:
        evidence.append(("methods", f"no installed method reads {stored.kind} checkpoints"))
    if explicit:
        method, spec = _explicit(path, explicit, stored, claims=claims, evidence=evidence, spec=spec)
    return Detection(
        path=path,
        kind="model",
        method=method,
        spec=spec,
        format=stored.format,
        evidence=tuple(evidence),
        record=record,
        stored=stored,
        origin=_origin(record, claim),
    )


def _explicit(
    path: str,
    explicit: str,
    stored: StoredWeights,
    *,
    claims: Mapping[str, str],
    evidence: list[tuple[str, str]],
    spec: QuantizationSpec | None,
) -> tuple[str, QuantizationSpec | None]:
    dense = claims.get("dense", QuantMethod.NO_QUANT.value)
    if stored.is_quantized and explicit.lower() == dense.lower():
        raise VerificationError(f"{path}: {explicit} was asked for, but the tensors are {stored.describe()}")
    if not stored.is_quantized and explicit.lower() != dense.lower():
        evidence.append(("explicit choice", f"the weights are dense; {explicit} is applied while loading"))
        return explicit, None
    return explicit, None if spec is None else spec.with_changes(method=explicit)


def _adapter(folder: Path, path: str, claims: Mapping[str, str], explicit: str | None, *, weights: bool) -> Detection:
    stored = read_adapter(folder) if weights or any(folder.glob("adapter_model*")) else None
    record, claim = _metadata(folder)
    base = stored.base if stored else read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    found = Detection(
        path=path,
        kind="adapter",
        method=explicit or UNKNOWN,
        spec=None,
        format=None,
        evidence=((ADAPTER_CONFIG, f"{stored.describe() if stored else 'an adapter'} on {base}"),),
        base=base if isinstance(base, str) else None,
        revision=stored.revision if stored else None,
        origin=_origin(record, claim),
    )
    if record is not None:
        return _our_adapter(found, record, stored.contradictions(record) if stored else [], explicit)
    evidence = list(found.evidence)
    if claim is not None:
        evidence.insert(0, (claim.file, f"{claim} (a claim: an adapter's tensors cannot confirm it)"))
    if explicit:
        return replace(found, evidence=tuple(evidence))
    under = _base_detection(found.base, claims, evidence)
    if under is not None:
        return replace(found, method=under.method, spec=under.spec, format=under.format, evidence=tuple(evidence))
    evidence.append(("recipe", "unknown: which quantization the base had in training is not recorded; name the method"))
    return replace(found, evidence=tuple(evidence))


def _our_adapter(found: Detection, record: ArtifactRecord, faults: list[str], explicit: str | None) -> Detection:
    evidence = [(RECORD_FILE, f"{record.name}, trained with {record.recipe.method}"), *found.evidence]
    _settle(found.path, RECORD_FILE, faults, explicit, evidence)
    overruled = explicit is not None and explicit.lower() != record.recipe.method.lower()
    if overruled:
        evidence.append(("explicit choice", f"{explicit} instead of the {record.recipe.method} it was trained with"))
    return replace(
        found,
        method=explicit if overruled and explicit else record.recipe.method,
        spec=None if overruled else record.quantization,
        format=None if overruled else record.quantization.format,
        evidence=tuple(evidence),
        record=record,
        base=record.base.name_or_path,
        revision=record.base.revision,
        plan=None if overruled else record.recipe,
    )


def _base_detection(base: str | None, claims: Mapping[str, str], evidence: list[tuple[str, str]]) -> Detection | None:
    """Detect an adapter's local base; only a quantized checkpoint settles how the adapter was trained."""
    if base is None or not Path(base).is_dir() or (Path(base) / ADAPTER_CONFIG).exists():
        return None
    try:
        under = detect(base, claims=claims)
    except QuantkitError as error:
        evidence.append(("base", str(error)))
        return None
    quantized = under.stored is not None and under.stored.is_quantized
    evidence.append(("base", under.stored.describe() if under.stored else under.method))
    return under if quantized else None


def _metadata(folder: Path) -> tuple[ArtifactRecord | None, study.Claim | None]:
    path = folder / RECORD_FILE
    if folder.is_dir() and path.is_file() and study.is_ours(read_object(path)):
        return read_record(folder), None
    return None, study.read_claim(folder) if folder.is_dir() else None


def _settle(path: str, source: str, faults: list[str], explicit: str | None, evidence: list[tuple[str, str]]) -> None:
    if not faults:
        return
    text = f"{source} says {'; '.join(faults)}"
    if explicit is None:
        raise VerificationError(f"{path}: {text}. One of the two is wrong; name the method explicitly to overrule the metadata")
    evidence.append((source, f"overruled: {text}"))


def _origin(record: ArtifactRecord | None, claim: study.Claim | None) -> Literal["quantkit", "study", "foreign"]:
    return "quantkit" if record is not None else "study" if claim is not None else "foreign"


def _refuse_two_kinds(folder: Path) -> None:
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if both := [name for name in names if (folder / name).is_file()]:
        raise UsageError(f"{folder}: holds an adapter ({ADAPTER_CONFIG}) and a model ({both[0]}); one folder is one kind")


def _refuse_empty(folder: Path) -> None:
    if folder.is_file():
        return
    names = [path.name for path in folder.iterdir()]
    if not any(name == "config.json" or name.endswith((*WEIGHT_FILES, ".bin", ".pt", ".index.json")) for name in names):
        raise UsageError(f"{folder}: holds no model and no adapter (no config.json, {ADAPTER_CONFIG}, *.safetensors, *.gguf)")
