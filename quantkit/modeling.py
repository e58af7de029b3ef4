"""How does a model come into memory, and is it then what it was said to be?

Everything that loads goes through here: the path is looked at before transformers sees it, so that mistakes are one line;
weights are read from safetensors only; a weight the checkpoint lacks is an error; and the loaded model is measured against
the spec. `AutoModelForCausalLM.from_pretrained` alone initializes missing weights at random and mentions it in a log line.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.adapters import (
    attach_adapter,
    check_adapter_tensors,
    recommend_rank,
    resolve_targets,
)
from quantkit.bases import READ_HERE, as_stored, stored_format, stored_kwargs, with_packed_layers
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.computing import compute_in
from quantkit.devices import resolve_compute_dtype, resolve_device
from quantkit.environment import quiet_libraries
from quantkit.errors import UsageError, VerificationError
from quantkit.hub import fetch, one_line, refuse_folder_without_model, refuse_missing_folder
from quantkit.kernel_caches import limit_kernel_caches
from quantkit.layers import linear_layers
from quantkit.measure import MEASURED, check_model, loaded_spec
from quantkit.methods import Methods
from quantkit.placement import check_placed, placement
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec

__all__ = [
    "ModelSource",
    "attach_adapter",
    "linear_layers",
    "load_base",
    "load_source",
    "load_tokenizer",
    "one_line",
    "recommend_rank",
    "refuse_folder_without_model",
    "refuse_missing_folder",
    "refuse_unreadable",
    "resolve_compute_dtype",
    "resolve_device",
    "resolve_targets",
]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
quiet_libraries()
limit_kernel_caches()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What to load: a model as it is stored, a base that is quantized while loading, or an adapter on such a base."""

    path: str
    """Folder or hub id of the model or adapter."""
    kind: Literal["model", "adapter"] = "model"
    base: str | None = None
    """For an adapter: folder or hub id of its base."""
    revision: str | None = None
    """Commit, tag or branch; for an adapter, that of its base."""
    plan: QuantizationPlan | None = None
    """Recipe by which the base is quantized while loading; None: the weights are read as they are stored."""
    spec: QuantizationSpec
    """What the loaded weights (an adapter's base) must measure as."""


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a folder or hub id.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    refuse_missing_folder(path)
    with one_line(path, "tokenizer"):
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)


def load_base(
    path: str,
    *,
    plan: QuantizationPlan,
    methods: Methods,
    device: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    calibration: Calibration | None = None,
    work: QuantizationWork | None = None,
    device_map: Mapping[str, int | str] | str | None = None,
) -> Any:
    """Return the base of a run as its plan wants it: loaded, quantized and measured; in eval mode.

    A folder whose weights are quantized already is taken as it is, dequantized where adapters need it. A dense base can be
    spread over several devices by `device_map` (`quantkit.placement`).

    Raises:
        UsageError: the folder or hub id holds no loadable model, or the method wants calibration data and has none.
        VerificationError: weights are missing, or the model in memory is not what the plan's spec says.
    """
    stored = stored_format(path)
    asked = stored is None or (stored == plan.spec.format and stored not in READ_HERE)
    extra = methods.load_kwargs(plan) if asked else stored_kwargs(path)
    extra["device_map"] = placement(device_map, device)
    model = _load(path, dtype=plan.compute_dtype, device=device, revision=revision, trust=trust_remote_code, extra=extra)
    check_placed(model, device)
    model = as_stored(model, path, plan.compute_dtype) if stored else methods.quantize_model(plan, model, calibration, work)
    return _settled(model, loaded_spec(plan), path)


def load_source(
    source: ModelSource, methods: Methods, *, device: str, trust_remote_code: bool = False, compute_dtype: str | None = None
) -> Any:
    """Return what a `ModelSource` describes: an adapter comes on exactly the base it was trained on, as a `PeftModel`.

    It computes in the data type it is stored in, or its recipe names, unless `compute_dtype` says another one
    (`quantkit.computing`).

    Raises:
        UsageError: a folder or hub id holds no loadable model or adapter.
        VerificationError: the loaded weights are not what the spec says, or the adapter does not fit.
    """
    path = source.path if source.kind == "model" else source.base
    if path is None:
        raise UsageError(f"{source.path}: the adapter names no base model; pass the base it was trained on")
    load: dict[str, Any] = {"device": device, "revision": source.revision}
    if source.plan is not None:
        _refuse_contradiction(source.plan.spec, source)
        model = load_base(path, plan=source.plan, methods=methods, trust_remote_code=trust_remote_code, **load)
    else:
        adapted = source.kind == "adapter"
        dtype = source.spec.lm_head_dtype if adapted else "auto"
        extra = stored_kwargs(path) if adapted and stored_format(path) else {}
        model = _load(path, dtype=dtype, trust=trust_remote_code, extra=extra, **load)
        model = as_stored(model, path, dtype) if adapted else with_packed_layers(model, path)
        model = _settled(model, source.spec, path)
    if compute_dtype is not None:
        model = compute_in(model, compute_dtype, device)
    return model if source.kind == "model" else _with_adapter(model, source.path)


def _load(path: str, *, dtype: str, device: str, revision: str | None, trust: bool, extra: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    from quantkit.backends.packed_checkpoints import is_packed_checkpoint, load_packed_checkpoint

    refuse_missing_folder(path)
    refuse_unreadable(Path(path))
    with one_line(path, "model"):
        if is_packed_checkpoint(Path(path)):
            model, report = load_packed_checkpoint(Path(path), dtype=dtype, device=device, trust_remote_code=trust)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                trust_remote_code=trust,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **({"device_map": {"": device}} | extra),
            )
    lacking = sorted([*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])])
    if lacking:
        raise VerificationError(
            f"{path}: {len(lacking)} weights of the model are missing from the checkpoint or have another shape, e.g."
            f" {lacking[0]}; transformers would start them at random"
        )
    return model


def _settled(model: Any, spec: QuantizationSpec, path: str) -> Any:
    from quantkit.backends import keep_layout

    keep_layout(model)
    try:
        check_model(model, spec)
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from None
    return model.eval()


def _refuse_contradiction(recipe: QuantizationSpec, source: ModelSource) -> None:
    for name in MEASURED:
        if getattr(recipe, name) != getattr(source.spec, name):
            raise VerificationError(
                f"{source.path}: its recipe says {name} {getattr(recipe, name)!r}, its metadata {getattr(source.spec, name)!r}"
            )


def _with_adapter(model: Any, path: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    refuse_missing_folder(path)
    folder = Path(path)
    if not folder.is_dir():
        folder = fetch(path, patterns=["adapter_config.json", "adapter_model.safetensors"])
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file() or not (folder / "adapter_config.json").is_file():
        raise UsageError(f"{path}: not an adapter folder; adapter_config.json and adapter_model.safetensors are needed")
    with one_line(path, "adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns where check_adapter_tensors refuses
        stored = load_file(weights)
        model = PeftModel.from_pretrained(model, folder, is_trainable=False, autocast_adapter_dtype=True)
    check_adapter_tensors(stored, set(get_peft_model_state_dict(model)), where=path)
    return model.eval()


def refuse_unreadable(folder: Path) -> None:
    """Raise `UsageError` where a folder, if it is one, holds no model, or no weights that may be read."""
    if not folder.is_dir():
        return
    refuse_folder_without_model(folder)
    names = [item.name for item in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        if pickles:
            raise UsageError(
                f"{folder}: weights are pickled ({pickles[0]}), which can run code when read; convert them to safetensors"
            )
        raise UsageError(f"{folder}: no *.safetensors weights in it")
