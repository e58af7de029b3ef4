"""Which model is meant by a path, a name in the registry or a hub id, and what do numbers about it belong to?

What is stored decides how it is loaded; an explicit recipe is applied only where the files cannot know it, and then it is
part of what the numbers belong to. Loading by `from_pretrained(path)` alone measures an adapter that was trained on 4-bit
weights on 16-bit ones.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.errors import UsageError, VerificationError
from quantkit.files import artifact_hash, sha256_of, verify_manifest
from quantkit.hub import fetch
from quantkit.methods import Methods, require_usable
from quantkit.modeling import ModelSource, resolve_compute_dtype, resolve_device
from quantkit.plan import AdapterPlan, PlanContext, QuantizationPlan
from quantkit_registry.adapters import ADAPTER_CONFIG
from quantkit_registry.detect import Detection, detect
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.hub import is_hub_id
from quantkit_registry.store import Registry

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is fetched of a hub id: no pickles, no code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model that can be loaded: what it is called, how to load it, and the hash its numbers belong to."""

    name: str
    artifact: str
    """sha256 over the content, and over the recipe where it was named explicitly."""
    source: ModelSource
    detection: Detection
    tokenizer: str
    """Folder or hub id of its tokenizer."""
    system_prompt: str | None
    """The one it was trained with; None where nothing records it."""


def open_path(
    path: str,
    methods: Methods,
    *,
    registry: Registry,
    device: str,
    method: str | None = None,
    base: str | None = None,
    force_base: str | None = None,
    trust_remote_code: bool = False,
) -> Opened:
    """Detect what a path is and decide how it is loaded, before weights are read (and torch, if that can be avoided).

    `force_base` is the fingerprint of a base that an adapter may be loaded on although its record names another.

    Raises:
        UsageError: nothing that can be loaded is there, or its recipe is not known and was not named.
        VerificationError: files differ from the manifest, witnesses disagree, or the base is another than in training.
    """
    folder = _folder(path, registry, trust_remote_code=trust_remote_code)
    explicit = methods.info(method).name if method else None
    found = detect(folder, claims=methods.claims(), explicit=explicit)
    content = artifact_hash(folder) if folder.is_dir() else None
    if content is not None:
        verify_manifest(folder)
    if found.kind == "adapter":
        found, applied, recipe = _open_adapter(
            found, methods, device, explicit, base, force_base=force_base, trust_remote_code=trust_remote_code
        )
    elif base is not None:
        raise UsageError(f"{path}: is a whole model; --base names the base of an adapter")
    else:
        applied = _recipe(found, methods, device, explicit) if found.spec is None and explicit else found.plan
        recipe = [] if applied is None else [json.dumps(applied.to_dict(), sort_keys=True)]
    spec = applied.spec if applied is not None else found.spec
    if spec is None:
        raise UsageError(
            f"{path}: {'; '.join(f'{source}: {text}' for source, text in found.evidence)}; --method names how to load it"
        )
    if applied is not None:
        require_usable(methods, [applied.method], resolve_device(device).partition(":")[0])

    data = found.record.data if found.record else {}
    prompt = data.get("system_prompt")
    return Opened(
        name=found.record.name if found.record else path.rstrip("/").rpartition("/")[2] or path,
        artifact=_hash([content or _content(folder), *recipe]),
        source=ModelSource(
            path=str(folder), kind=found.kind, base=found.base, revision=found.revision, plan=applied, spec=spec
        ),
        detection=found,
        tokenizer=str(folder) if (folder / "tokenizer_config.json").is_file() else str(found.base or folder),
        system_prompt=prompt if isinstance(prompt, str) else None,
    )


def _open_adapter(
    found: Detection,
    methods: Methods,
    device: str,
    explicit: str | None,
    base: str | None,
    *,
    force_base: str | None,
    trust_remote_code: bool,
) -> tuple[Detection, QuantizationPlan | None, list[str]]:
    """Return the detection with its base, the recipe the base is loaded by, and what else the numbers belong to."""
    if base is not None:
        found = replace(found, base=base, revision=None)
    if found.base is None:
        raise UsageError(f"{found.path}: {ADAPTER_CONFIG} names no base model; --base names the one it was trained on")
    if not Path(found.base).expanduser().exists():
        if not is_hub_id(found.base):
            raise UsageError(f"{found.path}: its base {found.base} is not there; --base FOLDER says where it is now")
        fetched = _fetch(found.base, found.revision, trust_remote_code=trust_remote_code)
        found = replace(found, base=str(fetched), revision=None)
    recorded = found.record.base.fingerprint if found.record else None
    here = fingerprint_base(str(found.base))
    forced = require_base(found.path, str(found.base), here=here, recorded=recorded, force_base=force_base)
    if found.plan is not None:
        return found, found.plan, [here] if forced else []
    if found.spec is not None and base is None:
        return found, None, [here]
    under = detect(str(found.base), claims=methods.claims())
    if under.stored is not None and under.stored.is_quantized:
        return replace(found, spec=under.spec), None, [here]
    if explicit is None:
        raise UsageError(
            f"{found.path}: which quantization its base had in training is recorded nowhere; --method names it"
            " (NoQuant, QLORA, …)"
        )
    plan = _recipe(under, methods, device, explicit)
    return found, plan, [here, json.dumps(plan.to_dict(), sort_keys=True)]


def require_base(path: str, base: str, *, here: str, recorded: str | None, force_base: str | None = None) -> bool:
    """Compare a base's fingerprint with the recorded one; return whether another was taken because it was typed in full.

    Raises:
        VerificationError: they differ, and `force_base` is not the fingerprint that is here.
    """
    if recorded is None or here == recorded:
        if force_base not in (None, here):
            raise VerificationError(f"--force-base is {force_base}, but {base} has the fingerprint {here}")
        return False
    if force_base == here:
        return True
    typed = f"; --force-base was {force_base[:19]}…, which is not its fingerprint" if force_base else ""
    raise VerificationError(
        f"{path}: was trained on another base than {base}: {here} here, {recorded} recorded{typed}; name the right one"
        " (--base, when merging --into)"
    )


def _recipe(dense: Detection, methods: Methods, device: str, method: str) -> QuantizationPlan:
    """Return the plan by which a dense model becomes this method's while loading."""
    device = resolve_device(device)
    adapters = methods.info(method).adapters
    kind = next((kind for kind in ("LoRa", "NoPeft", *adapters) if kind in adapters), "NoPeft")
    stored = dense.stored.weights_dtype if dense.stored and dense.stored.weights_dtype else "bfloat16"
    context = PlanContext(
        adapter=AdapterPlan(kind=kind),  # type: ignore[arg-type]
        device=device.partition(":")[0],
        compute_dtype=resolve_compute_dtype("auto", device),
        dense_dtype=stored,
    )
    return methods.plan(method, {}, context)


def _folder(path: str, registry: Registry, *, trust_remote_code: bool) -> Path:
    for folder in (Path(path).expanduser(), registry.root / path):
        if folder.exists():
            return folder
    return _fetch(path, None, trust_remote_code=trust_remote_code, registry=registry)


def _fetch(repo_id: str, revision: str | None, *, trust_remote_code: bool, registry: Registry | None = None) -> Path:
    """Return the folder of a hub id, fetched as far as it is not in the local cache."""
    if not is_hub_id(repo_id):
        raise UsageError(f"{repo_id}: no such file or folder, and no hub id (owner/name) either")
    near = [item.name for item in registry.root.glob("*") if item.is_dir()] if registry else []
    return fetch(repo_id, patterns=[*FILES, "*.py"] if trust_remote_code else list(FILES), revision=revision, near=near)


def _content(folder: Path) -> str:
    """Return what stands for the content of a folder without manifest: its configuration and weight files."""
    if folder.is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return fingerprint_base(folder)
    files = [folder / ADAPTER_CONFIG, *sorted(folder.glob("adapter_model*"))]
    return _hash([f"{file.name} {sha256_of(file)}" for file in files])


def _hash(parts: list[str]) -> str:
    """Return the one part that is a sha256 already, else a sha256 over all parts."""
    alone = parts[0].removeprefix("sha256:")
    return alone if len(parts) == 1 else hashlib.sha256("\n".join([alone, *parts[1:]]).encode()).hexdigest()
