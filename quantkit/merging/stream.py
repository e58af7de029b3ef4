"""How does an adapter become part of a model that does not fit into memory?

    merged = merge_streaming(base, adapter, destination, dtype="bfloat16", fingerprint=fingerprint_base(base))

Shard by shard, one tensor at a time: read, made what the training base held (`policy="dequantized"`; `"base"` takes the
original weights as they are), changed if it is a target, cast, written. At no time are more than a few copies of the largest
layer in memory. In float32 the result is bit-equal to `fold_adapters` on the loaded model, else it is that result rounded.
Loading base and adapter, as `merge_and_unload` wants it, takes the whole model in memory, and more for a quantized one.

Whatever could make the result another model than the one that was trained is refused before the first byte is written:
see `quantkit.merging.refusals`. `finish` gets the folder before it appears under its name, to measure it and to add a record.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from quantkit.errors import UsageError
from quantkit.files import new_folder, refuse_existing
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
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit.spec import DENSE_BITS

if TYPE_CHECKING:
    from quantkit.methods import Methods

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


def merge_streaming(
    base: str | Path,
    adapter: str | Path,
    destination: Path,
    *,
    fingerprint: str | None,
    policy: Policy = "dequantized",
    dtype: str = "bfloat16",
    lm_head_dtype: str | None = None,
    recipe: QuantizationPlan | None = None,
    recorded_base: str | None = None,
    force_base: str | None = None,
    methods: "Methods | None" = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = True,
    finish: "Callable[[Path, Merged], None] | None" = None,
) -> Merged:
    """Fold the adapter of a folder into a base's files and write a dense model in `dtype`; return what was done.

    `fingerprint` is that of the base here (`quantkit_registry.fingerprints`); `recorded_base` what it should be (default: what
    the adapter's record says). `recipe` is how the training base was quantized while loading, and the data type it computed in
    (default: the record's); a base that is stored quantized is decoded as stored. `force_base` is the typed fingerprint of
    another base than the recorded one. `device` is where weights are quantized and decoded.

    Raises:
        UsageError: folders, settings or formats that cannot be read or merged; the destination exists.
        VerificationError: adapter and base do not belong together, were merged before, or a result is not finite.
    """
    started = perf_counter()
    refuse_existing(destination, overwrite=overwrite)
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
    with new_folder(destination, overwrite=overwrite) as temporary:
        written = job.write(
            temporary,
            max_shard_bytes=max_shard_bytes,
            metadata={MERGED: ",".join([*earlier, found.weights_sha256])},
            progress=progress,
        )
        write_dense_config(into, temporary, dtype=dtype, tied=job.tied, vocab_size=job.vocab_size)
        copy_companions(into.folder, found.folder, temporary)
        merged = Merged(
            policy=policy,
            dtype=dtype,
            kind=found.settings.kind,
            base_format=_format_of(into, load_kwargs),
            computed_in=computed_in or (stored_dtype(into) if into.stored_format else None),
            base_fingerprint=fingerprint,
            recorded_fingerprint=recorded,
            forced=forced,
            adapter_sha256=found.weights_sha256,
            layers_changed=job.changed,
            replaced=tuple(sorted(found.saved)),
            tied=job.tied,
            vocab_size=job.vocab_size,
            tensors=len(job.entries),
            written_bytes=written,
            duration_s=perf_counter() - started,
        )
        if finish is not None:
            finish(temporary, merged)
    return replace(merged, duration_s=perf_counter() - started)


def local_folder(path: str, revision: str | None = None) -> Path:
    """Return a local folder as it is, or that of a hub id, fetched as far as it is not in the cache; no pickles, no code."""
    from quantkit.modeling import one_line, refuse_missing_folder

    refuse_missing_folder(path)
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download

    with one_line(path, "model or adapter"):
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))


def _load_kwargs(
    folder: Path, policy: Policy, recipe: QuantizationPlan | None, methods: "Methods | None", *, where: Path
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
    from quantkit.methods import installed_methods

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
    from quantkit.headers import read_stored_weights

    config = load_kwargs.get("quantization_config")
    if config is None:
        return read_stored_weights(base.folder).describe()
    return "int8 (bitsandbytes)" if config.load_in_8bit else f"{config.bnb_4bit_quant_type} (bitsandbytes)"
