"""What stands in an artifact's `quantization_metadata.json`?

One versioned dataclass, read as strictly as it is written: unknown keys, other versions and wrong types are errors, so a
record is either whole or refused. Every key is explained in `registry/README.md`. A free-form dictionary would be read
with `.get(…, default)`, and the defaults would be what gets believed.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from quantkit import __version__
from quantkit.errors import UsageError, did_you_mean
from quantkit.files import write_json
from quantkit.headers import read_object
from quantkit.options import check_value
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit.spec import DENSE_BITS, QuantizationSpec, read_fields
from quantkit_registry.names import parse_name

RECORD_FILE = "quantization_metadata.json"
SCHEMA_VERSION = 1
ArtifactKind = Literal["model", "adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseReference:
    """The model an artifact was made from."""

    name_or_path: str
    """Hub id or path, as it was given."""
    revision: str | None = None
    """Commit of the hub id; null for a path."""
    fingerprint: str | None = None
    """`fingerprints.fingerprint_base` of the base's files when the run started; null where it could not be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRecord:
    """How adapters were folded in."""

    policy: str
    """`dequantized`: into the dequantized base they were trained on; `base`: into the original 16-bit one; `requantized`: as
    the first, then quantized again by the recipe."""
    dtype: str
    """Data type in which the merged weights are stored; of a requantized model: what is not quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An artifact that this one was made from."""

    name: str
    artifact: str | None = None
    """The parent's hash (`files.artifact_hash`); null where it has no manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """What one artifact is, and how it came to be; the fields are the JSON keys.

    Raises:
        UsageError: the name does not fit the grammar, or fields contradict each other.
    """

    name: str
    """The artifact's standardized name."""
    kind: ArtifactKind
    """`model`: whole weights; `adapter`: PEFT adapter weights on a base."""
    quantization: QuantizationSpec
    """What the stored weights are; of an adapter: what the weights of the base are that it is loaded on."""
    recipe: QuantizationPlan
    """The plan the run followed: method, options, adapter, compute type."""
    base: BaseReference
    """The model it was made from."""
    adapter: AdapterPlan | None = None
    """The adapters that were trained; null for none."""
    merge: MergeRecord | None = None
    """How adapters were folded in; null where none were."""
    parents: tuple[Parent, ...] = ()
    """Artifacts it was made from, nearest first."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings and outcome of the training run: steps, losses, tokens, seconds."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Source, rows and fingerprint of the training data."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Measured peaks per stage, in bytes, and durations, in seconds."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware of the run."""
    verification: Mapping[str, Any] = field(default_factory=dict)
    """What was checked before the artifact was committed, and the numbers."""
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the record was made: ISO 8601 with time zone."""
    quantkit_version: str = __version__
    """The version that wrote it."""
    schema_version: int = SCHEMA_VERSION
    """Version of this table of keys."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        parse_name(self.name)
        if self.schema_version != SCHEMA_VERSION:
            raise UsageError(f"schema_version is {self.schema_version}; this quantkit reads and writes {SCHEMA_VERSION}")
        if self.kind == "adapter" and (self.adapter is None or self.adapter.kind == "NoPeft"):
            raise UsageError(f"the record of {self.name} says kind 'adapter' but names no adapter")
        if self.kind == "adapter" and self.merge is not None:
            raise UsageError(f"the record of {self.name} says kind 'adapter' and how it was merged; one folder is one kind")
        if self.merge is not None and self.merge.dtype not in DENSE_BITS:
            raise UsageError(f"merge.dtype is {self.merge.dtype!r}; known: {', '.join(DENSE_BITS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, what identifies the artifact first; `from_dict` is its inverse."""
        data = {
            "schema_version": self.schema_version,
            "quantkit_version": self.quantkit_version,
            "name": self.name,
            "kind": self.kind,
            "created_at": self.created_at,
            "quantization": self.quantization.to_dict(),
            "recipe": self.recipe.to_dict(),
            "adapter": None if self.adapter is None else self.adapter.to_dict(),
            "merge": None if self.merge is None else asdict(self.merge),
            "base": asdict(self.base),
            "parents": [asdict(parent) for parent in self.parents],
        }
        return data | {item.name: getattr(self, item.name) for item in fields(self) if item.name not in data}

    @classmethod
    def from_dict(cls, data: Any, *, where: str = "the record") -> Self:
        """Read a record back from JSON data.

        Raises:
            UsageError: `where`, and the key that is unknown, missing, contradictory or of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"{where}: the record is {type(data).__name__}, not an object")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            advice = "install a newer quantkit" if newer else "the file was not written by quantkit"
            raise UsageError(f"{where}: schema_version is {version!r}; this quantkit reads {SCHEMA_VERSION}; {advice}")
        known = [item.name for item in fields(cls)]
        try:
            for key in data:
                if key not in known:
                    raise UsageError(f"the record has the unknown key {key!r}.{did_you_mean(str(key), known)}")
            if missing := [key for key in known if key not in data]:
                raise UsageError(f"the record lacks {', '.join(missing)}")
            return cls(**{key: _value(cls, key, data[key]) for key in known})
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def _value(cls: type[ArtifactRecord], key: str, value: Any) -> Any:
    if value is None and key in ("adapter", "merge"):
        return None
    if key not in READERS:
        return check_value(cls, key, value, where="the record", strict=True)
    return READERS[key](value)


def _parents(value: Any) -> tuple[Parent, ...]:
    if not isinstance(value, list):
        raise UsageError(f"parents is {type(value).__name__}, not a list")
    return tuple(read_fields(Parent, item, where="parents") for item in value)


def _plan(value: Any) -> QuantizationPlan:
    """Read a plan whose spec and adapter are as strict as the record's own: no unknown keys."""
    try:
        if isinstance(value, Mapping):
            for key, reader in (("spec", QuantizationSpec.from_dict), ("adapter", AdapterPlan.from_dict)):
                if key in value:
                    reader(value[key])
    except UsageError as error:
        raise UsageError(f"recipe: {error}") from None
    return read_fields(QuantizationPlan, value, where="recipe")


READERS: dict[str, Callable[[Any], Any]] = {
    "quantization": QuantizationSpec.from_dict,
    "recipe": _plan,
    "adapter": AdapterPlan.from_dict,
    "merge": lambda value: read_fields(MergeRecord, value, where="merge"),
    "base": lambda value: read_fields(BaseReference, value, where="base"),
    "parents": _parents,
}


def write_record(folder: Path, record: ArtifactRecord) -> None:
    """Write a record into a folder that is being made."""
    write_json(folder / RECORD_FILE, record.to_dict())


def read_record(folder: Path) -> ArtifactRecord:
    """Return a folder's record.

    Raises:
        UsageError: there is none, or it is not a whole record of this version; the text names the file and the key.
    """
    path = Path(folder) / RECORD_FILE
    return ArtifactRecord.from_dict(read_object(path), where=str(path))
