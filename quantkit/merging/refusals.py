"""Do this adapter and this base belong together, and has it been merged before?

Each check stands for one way in which a merge goes wrong without an error elsewhere: PEFT folds an adapter into any base of
the same shapes, skips tensors that were renamed, believes an edited `lora_alpha`, and folds the same adapter in twice.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.adapters import resolve_targets
from quantkit.errors import UsageError, VerificationError, did_you_mean
from quantkit.files import MANIFEST, artifact_hash, verify_manifest
from quantkit.headers import TensorIndex, read_object
from quantkit.layout import counted
from quantkit.merging.delta import FolderAdapter
from quantkit.merging.model_facts import BaseFolder
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit.saving import METADATA

MERGED = "quantkit_merged"
"""Key in the metadata of safetensors files under which the sha256 of every adapter folded in so far stands."""
SHOWN = 3


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record that quantkit keeps in a folder, empty where there is none."""
    path = folder / METADATA
    return read_object(path) if path.is_file() else {}


def recorded_plan(record: Mapping[str, Any]) -> QuantizationPlan | None:
    """Return the recipe of the base that an adapter's record states."""
    plan = record.get("recipe")
    return QuantizationPlan.from_dict(plan) if isinstance(plan, Mapping) else None


def recorded_fingerprint(record: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of the base that a record states."""
    base = record.get("base")
    found = base.get("fingerprint") if isinstance(base, Mapping) else None
    return found if isinstance(found, str) else None


def check_base(recorded: str | None, actual: str | None, *, force_base: str | None, where: str) -> bool:
    """Compare the base's fingerprint with the recorded one; return whether another base was forced.

    Raises:
        VerificationError: they differ, and `force_base` does not spell out the actual one.
        UsageError: `force_base` spells something else, or the base's fingerprint was not taken.
    """
    if force_base is not None and force_base != actual:
        raise UsageError(f"force_base is {force_base!r}; this base has the fingerprint {actual}. It must be typed in full")
    if recorded is None or recorded == actual:
        return False
    if actual is None:
        raise UsageError(f"{where}: records the fingerprint of its base, {recorded}; take that of the base to compare it")
    if force_base is None:
        raise VerificationError(
            f"{where}: was trained on another base: {recorded} is recorded, {actual} is here. Merge into the right one, or pass"
            f" force_base {actual} to merge all the same; the merge record will say so"
        )
    return True


def check_unedited(adapter: FolderAdapter, base: BaseFolder, plan: AdapterPlan | None) -> None:
    """Compare an adapter's files with its manifest, and its settings with the recorded ones.

    Raises:
        VerificationError: names each setting that differs, with both values.
    """
    if (adapter.folder / MANIFEST).is_file():
        verify_manifest(adapter.folder)
    if plan is None:
        return
    settings = adapter.settings
    pairs: list[tuple[str, Any, Any]] = [
        ("kind", plan.kind, settings.kind),
        ("r", plan.r, settings.r),
        ("use_rslora", plan.use_rslora, settings.use_rslora),
        ("modules_to_save", sorted(plan.modules_to_save), sorted(settings.modules_to_save)),
        ("rank_pattern", {}, dict(settings.rank_pattern)),
        ("alpha_pattern", {}, dict(settings.alpha_pattern)),
    ]
    if plan.kind != "VeRa":
        pairs.append(("lora_alpha", plan.lora_alpha, settings.alpha))
    faults = [f"{name} is {here!r}, recorded was {said!r}" for name, said, here in pairs if said != here]
    targets = set(resolve_targets(base.skeleton, plan.target_modules))
    if targets != set(adapter.modules):
        odd = sorted(targets ^ set(adapter.modules))
        faults.append(
            f"target_modules adapt {len(adapter.modules)} layers, recorded were {len(targets)}; they differ in"
            f" {', '.join(odd[:SHOWN])}"
        )
    if faults:
        raise VerificationError(f"{adapter.folder}: its files were changed after training: {'; '.join(faults)}")


def check_not_merged(adapter: FolderAdapter, base: BaseFolder) -> tuple[str, ...]:
    """Return the sha256 of the adapters that the base holds already.

    Raises:
        VerificationError: this adapter is among them; folding it in a second time would double its update.
    """
    held = merged_adapters(base.index)
    parents = read_record(base.folder).get("parents") or []
    hashes = [parent.get("artifact") for parent in parents if isinstance(parent, Mapping)]
    if adapter.weights_sha256 in held or artifact_hash(adapter.folder) in [item for item in hashes if item]:
        raise VerificationError(
            f"{base.folder}: {adapter.folder} is merged into this base already; a second time would double its update."
            " Nothing is left to be done"
        )
    return held


def merged_adapters(index: TensorIndex) -> tuple[str, ...]:
    """Return the sha256 of every adapter's weights that a folder's files say was folded in."""
    return tuple(item for item in index.metadata.get(MERGED, "").split(",") if re.fullmatch(r"[0-9a-f]{64}", item))


def check_keys(adapter: FolderAdapter, base: BaseFolder) -> None:
    """Compare an adapter's tensors with what its configuration asks for on this base.

    Raises:
        VerificationError: modules are missing or unknown, or a trained copy is missing; names them.
    """
    wanted = wanted_modules(adapter, base)
    missing, extra = sorted(wanted - set(adapter.modules)), sorted(set(adapter.modules) - wanted)
    where = f"{adapter.folder}: the adapter does not fit its configuration and this base"
    if extra or missing:
        parts = [f"no tensors for {counted(len(missing), 'layer')} to be adapted, e.g. {missing[0]}"] if missing else []
        if extra:
            known = "" if extra[0] in base.layers else did_you_mean(extra[0], list(base.layers))
            parts.append(
                f"tensors for {counted(len(extra), 'layer')} not to be adapted, e.g. {extra[0]}{'.' if known else ''}{known}"
            )
        raise VerificationError(f"{where}: {'; '.join(parts)}")
    expected = _saved_tensors(adapter, base)
    lacking = sorted(expected - set(adapter.saved))
    if lacking:
        raise VerificationError(
            f"{where}: modules_to_save is {', '.join(adapter.settings.modules_to_save)}, but {lacking[0]} is not stored with it"
        )
    embeddings = {f"{name}.weight" for name in (base.embeddings, base.head) if name}
    if unknown := sorted(set(adapter.saved) - expected - embeddings):
        raise VerificationError(f"{where}: {counted(len(unknown), 'tensor')} of no module of it, e.g. {unknown[0]}")
    adapter.check_shapes({name: base.layers[name] for name in adapter.modules})
    for name, stored in adapter.saved.items():
        there = base.stored(name) or (base.stored(f"{base.embeddings}.weight") if name in embeddings else None)
        resized = name in embeddings and name not in expected
        shape = None if there is None else there.shape
        if shape is not None and stored.shape != shape and not (resized and stored.shape[1:] == shape[1:]):
            raise VerificationError(f"{where}: {name} has the shape {list(stored.shape)}, the base has {list(shape)} there")


def wanted_modules(adapter: FolderAdapter, base: BaseFolder) -> set[str]:
    """Return the layers that an adapter's configuration asks for, found by PEFT's own rule."""
    from types import SimpleNamespace

    from peft.tuners.tuners_utils import check_target_module_exists

    config = adapter.settings.config
    targets = config.get("target_modules")
    if targets == "all-linear":
        return set(base.layers) - {base.head}
    if not targets or not (isinstance(targets, str) or all(isinstance(item, str) for item in targets)):
        raise UsageError(
            f"{adapter.folder}: target_modules is {str(targets)[:60]!r}; names, or a regular expression, are wanted"
        )
    keys = ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "target_parameters")
    asked: Any = SimpleNamespace(target_modules=targets, **{key: config.get(key) for key in keys})
    try:
        return {name for name in base.layers if check_target_module_exists(asked, name)}
    except re.error as error:
        raise UsageError(f"{adapter.folder}: target_modules {str(targets)[:60]!r} is no regular expression: {error}") from None


def _saved_tensors(adapter: FolderAdapter, base: BaseFolder) -> set[str]:
    entries: Sequence[str] = adapter.settings.modules_to_save
    found: set[str] = set()
    for entry in entries:
        modules = [name for name, _ in base.skeleton.named_modules() if name == entry or name.endswith(f".{entry}")]
        if not modules:
            raise VerificationError(f"{adapter.folder}: modules_to_save names {entry!r}; the base has no such module")
        found |= {f"{name}.{key}" for name in modules for key, _ in base.skeleton.get_submodule(name).named_parameters()}
    return found
