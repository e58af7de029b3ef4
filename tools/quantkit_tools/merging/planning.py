"""What will merging an adapter give, and what will it take? Known from records and configuration, before weights are read."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.errors import QuantkitError, UsageError, VerificationError
from quantkit.files import read_manifest, verify_manifest
from quantkit.merging.report import MAX_LOST_GAIN
from quantkit.methods import Methods
from quantkit.modeling import resolve_device
from quantkit.plan import QuantizationPlan
from quantkit.skeleton import read_skeleton
from quantkit.spec import DENSE_BITS, QuantizationSpec
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.names import ArtifactName, format_name, parse_name
from quantkit_registry.records import RECORD_FILE, ArtifactRecord, BaseReference, Parent, read_record
from quantkit_registry.store import Registry, default_root
from quantkit_tools.merging.flags import MergeConfig
from quantkit_tools.opening import Opened, open_path, require_base
from quantkit_tools.planning import MERGES
from quantkit_tools.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeJob:
    """Which adapter is folded into which base, how, and where to."""

    config: MergeConfig
    policy: str
    opened: Opened
    """The adapter on the base it was trained on."""
    record: ArtifactRecord
    """The adapter's."""
    into: str
    """Folder of the base whose weights are folded into."""
    into_revision: str | None
    base: BaseReference
    """What the result's record says of its base."""
    recorded_base: str | None
    """The fingerprint that base must have."""
    forced: str | None
    """Fingerprint of a base that was taken although the record names another."""
    stored: QuantizationSpec
    """What the result will hold."""
    dtype: str
    """Data type of its dense weights."""
    name: str
    target: Path
    device: str
    size_bytes: int
    """Estimated size of the result's weights."""
    largest_bytes: int
    """The base's largest tensor in float32; streaming holds a few of that size."""
    whole_bytes: int
    """All weights in float32: what comparing the models takes at most."""

    @property
    def recipe(self) -> QuantizationPlan:
        """Return the plan that the adapter was trained by."""
        return self.record.recipe

    @property
    def work(self) -> Path:
        """Folder of finished blocks while weights are quantized again."""
        return self.target.parent / ".quantizing" / self.name

    @property
    def parents(self) -> tuple[Parent, ...]:
        """Return the adapter, and what it was made from."""
        return (Parent(name=self.record.name, artifact=self.opened.artifact), *self.record.parents)

    @property
    def max_lost_gain(self) -> float:
        """Return the share of the gain that may be lost."""
        return MAX_LOST_GAIN[self.policy] if self.config.max_lost_gain is None else self.config.max_lost_gain

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "artifact": str(self.target),
            "exists": self.target.exists(),
            "adapter": self.record.name,
            "policy": self.policy,
            "into": self.into,
            "forced_base": self.forced,
            "device": self.device,
            "quantization": self.stored.to_dict(),
            "recipe": self.recipe.to_dict(),
            "size_bytes": self.size_bytes,
            "memory_bytes": {"largest_tensor": self.largest_bytes, "comparing": self.whole_bytes},
            "max_lost_gain": self.max_lost_gain,
        }


def plan_merge(config: MergeConfig, methods: Methods) -> MergeJob:
    """Decide base, policy, name and target.

    Raises:
        UsageError: what is named is no adapter with a recorded recipe, or settings contradict each other.
        VerificationError: files or base are not those that were recorded.
    """
    device = resolve_device(config.device)
    root = default_root() if config.dst is None else Path(config.dst).expanduser()
    registry = Registry(None if config.dst is None or not root.is_dir() else root)
    record, folder = _adapter(config.adapter, registry)
    policy = _policy(config, record)
    original = _original_of(record) if policy == "base" else None
    opened = open_path(
        str(folder),
        methods,
        registry=registry,
        device=device,
        base=None if original else config.into,
        force_base=None if original else config.force_base,
        trust_remote_code=config.trust_remote_code,
    )
    here = fingerprint_base(str(opened.source.base), revision=opened.source.revision)
    into, base, forced = str(opened.source.base), record.base, here if here != record.base.fingerprint else None
    if original is not None:
        into = config.into or original.name_or_path
        here = fingerprint_base(into, revision=None if config.into else original.revision)
        taken = require_base(str(folder), into, here=here, recorded=original.fingerprint, force_base=config.force_base)
        base, forced = original, here if taken else None
    if forced is not None:
        base = BaseReference(name_or_path=config.into or into, fingerprint=here)
    dtype = config.save_dtype or _own_dtype(record)
    stored = record.recipe.spec if policy == "requantized" else QuantizationSpec.dense(dtype)
    target, name = target_of(root, folder, record, policy, dtype)
    skeleton = read_skeleton(into, trust_remote_code=config.trust_remote_code)
    sizes = Sizes.of(skeleton.model, stored, (), DENSE_BITS[dtype] // 8)
    counts = [parameter.numel() for parameter in skeleton.model.parameters()]
    return MergeJob(
        config=config,
        policy=policy,
        opened=opened,
        record=record,
        into=into,
        into_revision=original.revision if original is not None and config.into is None else opened.source.revision,
        base=base,
        recorded_base=record.base.fingerprint if original is None else original.fingerprint,
        forced=forced,
        stored=stored,
        dtype=dtype,
        name=name,
        target=target,
        device=device,
        size_bytes=sizes.stored if stored.is_quantized else sum(counts) * DENSE_BITS[dtype] // 8,
        largest_bytes=4 * max(counts),
        whole_bytes=4 * sum(counts),
    )


def announce(job: MergeJob) -> None:
    """Print what will be done and what it will take."""
    holds = f"{job.stored.weights_dtype} in {job.stored.format}" if job.stored.is_quantized else job.dtype
    fold = f"a few tensors of at most {console.format_bytes(job.largest_bytes)} to fold"
    if job.policy == "requantized":
        fold = "the whole model in float32 to quantize again"
    rows: list[tuple[str, object]] = [
        ("adapter", f"{job.record.name}: {job.record.adapter.label if job.record.adapter else ''} on {job.recipe.method}"),
        ("base", job.into),
        ("merges", MERGES[job.policy] if job.recipe.spec.is_quantized else "into the dense base that it was trained on"),
        ("saves", f"model: {holds}, about {console.format_bytes(job.size_bytes)}"),
        ("memory", f"{fold}; up to {console.format_bytes(job.whole_bytes)} to compare, one model at a time"),
        ("marked if", f"more than {job.max_lost_gain:.0%} of the fine-tune's gain is lost"),
        ("as", str(job.target)),
    ]
    console.table("Plan", ["", ""], rows)
    if job.forced:
        console.warn(f"{job.into} is not the base that was recorded; it was forced by its fingerprint {job.forced}")


def existing_merge(job: MergeJob) -> ArtifactRecord | None:
    """Return the record of the same merge where it has been made before; None where nothing stands there.

    Raises:
        UsageError: something else stands under the name, and may not be replaced.
        VerificationError: the merge that stands there is damaged.
    """
    if not job.target.exists() or job.config.overwrite:
        return None
    there = read_record(job.target) if (job.target / RECORD_FILE).is_file() and read_manifest(job.target) else None
    same = (
        there is not None
        and there.merge is not None
        and (there.merge.policy, there.parents, there.quantization) == (job.policy, job.parents, job.stored)
        and there.base.fingerprint == job.base.fingerprint
    )
    if there is None or not same:
        raise UsageError(
            f"{job.target} exists and is not this merge; choose another folder with --dst, or pass --overwrite to replace it"
        )
    verify_manifest(job.target)
    return there


def _adapter(wanted: str, registry: Registry) -> tuple[ArtifactRecord, Path]:
    """Return record and folder of the adapter that is named."""
    folder = next((path for path in (Path(wanted).expanduser(), registry.root / wanted) if path.is_dir()), None)
    if folder is None:
        raise UsageError(f"{wanted}: no such folder, and no artifact of this name under {registry.root}")
    entry = registry.entry(folder)
    if entry is None:
        raise UsageError(f"{folder}: holds no model and no adapter")
    if entry.origin == "broken":
        raise VerificationError(f"{folder}: {entry.fault}")
    if entry.record is None:
        if not (folder / "adapter_config.json").is_file():
            raise UsageError(f"{folder}: is a whole model; an adapter is wanted")
        raise UsageError(
            f"{folder}: which base, quantized in which way, it was trained on is recorded nowhere; say it once with"
            f" quantkit registry adopt {folder} --base BASE --method METHOD, then merge the adopted artifact"
        )
    if entry.record.kind == "model":
        merged = entry.record.merge is not None
        raise UsageError(
            f"{folder}: is a whole model; {'its adapter is folded in already' if merged else 'an adapter is wanted'}"
        )
    return entry.record, folder


def _policy(config: MergeConfig, record: ArtifactRecord) -> str:
    if record.recipe.spec.is_quantized:
        if config.policy == "requantized" and config.save_dtype not in (None, _own_dtype(record)):
            raise UsageError(
                f"--save-dtype is {config.save_dtype}, but a requantized merge keeps the recipe's {_own_dtype(record)} beside"
                " its quantized weights; leave it out"
            )
        return config.policy
    if config.policy == "requantized":
        raise UsageError(f"{record.name} was trained on dense weights; there is nothing to quantize again (quantkit quantize)")
    return "dequantized"  # the dense base is the original


def _own_dtype(record: ArtifactRecord) -> str:
    """Return the data type of the base's own dense weights."""
    spec = record.recipe.spec
    found = spec.lm_head_dtype if spec.is_quantized else spec.weights_dtype
    return found if found in DENSE_BITS else "bfloat16"


def _original_of(record: ArtifactRecord) -> BaseReference | None:
    """Return the original of a base that is a quantized artifact; None where the base itself is the original."""
    folder = Path(record.base.name_or_path).expanduser()
    if not (folder / RECORD_FILE).is_file():
        return None
    try:
        under = read_record(folder)
    except QuantkitError:
        return None
    return under.base if under.quantization.is_quantized else None


def target_of(root: Path, adapter: Path, record: ArtifactRecord, policy: str, dtype: str) -> tuple[Path, str]:
    """Return folder and name of the result; where the kept adapter has the bare name, the result is told apart from it."""
    name = parse_name(record.name)
    spec = record.recipe.spec
    if policy != "requantized" and (spec.is_quantized or spec.weights_dtype != dtype):
        name = name.merged(dtype, "base" if policy == "base" else None)
    text = format_name(name)
    parent = root.parent if root.name in (text, format_name(_apart(name, policy, dtype))) else root
    if (parent / text).resolve() == adapter.resolve():
        text = format_name(_apart(name, policy, dtype))
    return parent / text, text


def _apart(name: ArtifactName, policy: str, dtype: str) -> ArtifactName:
    return name.merged(None, "requantized") if policy == "requantized" else replace(name, merged_dtype=dtype)
