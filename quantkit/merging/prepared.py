"""Can this adapter be folded into this base, and into what? All is settled and checked before a byte is written.

    prepared = prepare_merge(base, adapter, fingerprint=fingerprint_base(base), dtype="bfloat16")
    merged = prepared.write(destination)

A run whose trained model is still in memory asks this first: what cannot be folded tensor by tensor can still be folded there.
Finding out while writing, the simple way, would come when that model has been let go.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from quantkit.errors import UsageError
from quantkit.files import new_folder
from quantkit.headers import read_stored_weights
from quantkit.hub import fetch, refuse_missing_folder
from quantkit.merging.delta import FolderAdapter, read_adapter_folder
from quantkit.merging.dense_folder import copy_companions, write_dense_config
from quantkit.merging.held import held_tensors, stored_dtype
from quantkit.merging.job import MergeJob
from quantkit.merging.model_facts import BaseFolder, read_base_folder
from quantkit.merging.refusals import (
    MERGED,
    check_base,
    check_keys,
    check_not_merged,
    check_unedited,
    read_record,
    recorded_fingerprint,
    recorded_plan,
)
from quantkit.methods import Methods, installed_methods
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit.spec import DENSE_BITS

Policy = Literal["dequantized", "base"]
MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge did, for its record."""

    policy: Policy
    dtype: str
    kind: str
    """`LoRa`, `DoRa` or `VeRa`."""
    base_format: str
    """What the weights were folded into, e.g. `nf4 (bitsandbytes)`, `bfloat16`."""
    computed_in: str | None
    """Data type in which the training base computed; null where it was not asked for."""
    base_fingerprint: str | None
    recorded_fingerprint: str | None
    """That of the base which the adapter was trained on; null where nothing recorded it."""
    forced: bool
    """Whether another base than the recorded one was forced."""
    adapter_sha256: str
    """Of the adapter's weight file."""
    layers_changed: int
    replaced: tuple[str, ...]
    """Tensors replaced by copies stored with the adapter: `modules_to_save`, resized embeddings."""
    tied: bool
    """Whether output head and embeddings still are one tensor."""
    vocab_size: int | None
    """Rows of the embeddings, where the adapter resized them."""
    tensors: int
    written_bytes: int
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self) | {"replaced": list(self.replaced)}


@dataclass(frozen=True, slots=True)
class PreparedMerge:
    """A merge of which all is settled and checked but the folding itself."""

    job: MergeJob
    facts: Merged
    """What will have been done, as far as it is known."""
    earlier: tuple[str, ...]
    """The sha256 of adapters that the base holds already."""
    load_kwargs: dict[str, Any]
    """Those by which the base is quantized while loading."""
    seconds: float

    def write(
        self,
        destination: Path,
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        overwrite: bool = False,
        progress: bool = True,
        finish: "Callable[[Path, Merged], None] | None" = None,
    ) -> Merged:
        """Fold, write and commit; `finish` gets the folder before it appears under its name.

        Raises:
            VerificationError: a value is not finite, or the adapter changes nothing.
        """
        started, job = perf_counter() - self.seconds, self.job
        with new_folder(destination, overwrite=overwrite) as temporary:
            written = job.write(
                temporary,
                max_shard_bytes=max_shard_bytes,
                metadata={MERGED: ",".join([*self.earlier, job.adapter.weights_sha256])},
                progress=progress,
            )
            write_dense_config(job.base, temporary, dtype=self.facts.dtype, tied=job.tied, vocab_size=job.vocab_size)
            copy_companions(job.base.folder, job.adapter.folder, temporary)
            merged = replace(
                self.facts,
                base_format=_format_of(job.base, self.load_kwargs),
                layers_changed=job.changed,
                written_bytes=written,
                duration_s=perf_counter() - started,
            )
            if finish is not None:
                finish(temporary, merged)
        return replace(merged, duration_s=perf_counter() - started)


def prepare_merge(
    base: str | Path,
    adapter: str | Path,
    *,
    fingerprint: str | None,
    policy: Policy = "dequantized",
    dtype: str = "bfloat16",
    lm_head_dtype: str | None = None,
    recipe: QuantizationPlan | None = None,
    recorded_base: str | None = None,
    force_base: str | None = None,
    methods: Methods | None = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreparedMerge:
    """Check all that a merge refuses, from headers, the adapter, and one quantized layer that is decoded for a trial.

    `fingerprint` is that of the base here (`quantkit_registry.fingerprints`); `recorded_base` what it should be (default: what
    the adapter's record says). `recipe` is how the training base was quantized while loading, and the data type it computed in
    (default: the record's); a base that is stored quantized is decoded as stored. `force_base` is the typed fingerprint of
    another base than the recorded one. `device` is where weights are quantized and decoded.

    Raises:
        UsageError: folders, settings or formats that cannot be read or merged.
        VerificationError: adapter and base do not belong together, were merged before, or the adapter is broken.
    """
    started = perf_counter()
    if dtype not in DENSE_BITS or (lm_head_dtype or dtype) not in DENSE_BITS:
        raise UsageError(f"dtype {dtype!r} with lm_head_dtype {lm_head_dtype!r}: merged weights are {', '.join(DENSE_BITS)}")
    found = read_adapter_folder(local_folder(str(adapter)))
    record = read_record(found.folder)
    recipe = recipe or recorded_plan(record)
    recorded = recorded_base or recorded_fingerprint(record)
    forced = check_base(recorded, fingerprint, force_base=force_base, where=str(found.folder))
    folder = local_folder(str(base), revision)
    load_kwargs = _load_kwargs(folder, policy, recipe, methods, where=found.folder)
    into = read_base_folder(folder, load_kwargs=load_kwargs, trust_remote_code=trust_remote_code)
    plan = AdapterPlan.from_dict(record["adapter"]) if record.get("adapter") else None
    check_unedited(found, into, plan)
    earlier = check_not_merged(found, into)
    check_keys(found, into)
    found.check_tensors()
    found = replace(found, largest=_largest(found, into))
    computed_in = None if policy == "base" or recipe is None else recipe.compute_dtype
    held = held_tensors(into, computed_in=computed_in, load_kwargs=load_kwargs, device=device)
    job = MergeJob(found, into, dtype, lm_head_dtype or dtype, held)
    if decode := next((item.decode for item in held if item.decode is not None), None):
        decode()
    facts = Merged(
        policy=policy,
        dtype=dtype,
        kind=found.settings.kind,
        base_format="",
        computed_in=computed_in or (stored_dtype(into) if into.stored_format else None),
        base_fingerprint=fingerprint,
        recorded_fingerprint=recorded,
        forced=forced,
        adapter_sha256=found.weights_sha256,
        layers_changed=0,
        replaced=tuple(sorted(found.saved)),
        tied=job.tied,
        vocab_size=job.vocab_size,
        tensors=len(job.entries),
        written_bytes=0,
        duration_s=0.0,
    )
    return PreparedMerge(job, facts, earlier, load_kwargs, perf_counter() - started)


def local_folder(path: str, revision: str | None = None) -> Path:
    """Return a local folder as it is, or that of a hub id, fetched as far as it is not in the cache; no pickles, no code."""
    refuse_missing_folder(path)
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    return fetch(path, patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"], revision=revision)


def _load_kwargs(
    folder: Path, policy: Policy, recipe: QuantizationPlan | None, methods: Methods | None, *, where: Path
) -> dict[str, Any]:
    """Return what the recipe passed to `from_pretrained`; empty where the base was taken as it is stored."""
    from quantkit.bases import stored_format

    stored = stored_format(str(folder))
    if policy == "base":
        if stored is not None:
            raise UsageError(
                f"{folder}: is stored as {stored}; policy 'base' folds into the original 16-bit base: name that one"
            )
        return {}
    if stored is not None:
        return {}
    if recipe is None:
        raise UsageError(
            f"{where}: which quantization its base had in training is recorded nowhere; name its recipe, or merge into the"
            " weights as they are stored with policy 'base'"
        )
    if not recipe.spec.is_quantized:
        return {}
    kwargs = (methods or installed_methods()).load_kwargs(recipe)
    if not kwargs:
        raise UsageError(
            f"{folder}: holds dense weights, but {recipe.method} made the training base a quantized folder of its own; merge"
            " into that folder, or into the original weights with policy 'base'"
        )
    return kwargs


def _largest(adapter: FolderAdapter, base: BaseFolder) -> tuple[int, int]:
    shapes = [base.layers[name] for name in adapter.modules]
    return (max(out for out, _ in shapes), max(columns for _, columns in shapes)) if shapes else (0, 0)


def _format_of(base: BaseFolder, load_kwargs: dict[str, Any]) -> str:
    config = load_kwargs.get("quantization_config")
    if config is None:
        return read_stored_weights(base.folder).describe()
    return "int8 (bitsandbytes)" if config.load_in_8bit else f"{config.bnb_4bit_quant_type} (bitsandbytes)"
