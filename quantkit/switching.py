"""How do several adapters share one base in memory? Each is loaded under a name of its own, and one at a time is active.

A base of gigabytes is loaded once and the adapters, of megabytes, are exchanged on it. Each is checked as if it came alone, and
what the active one computes is what it computes alone. PEFT's `load_adapter` only warns about tensors that do not fit.
"""

import warnings
from pathlib import Path
from typing import Any

from quantkit.adapters import check_adapter_tensors
from quantkit.errors import UsageError
from quantkit.modeling import one_line, refuse_missing_folder


def add_adapter(model: Any, path: str) -> str:
    """Load one more adapter of the same base onto a `PeftModel`; return the name under which `use_adapter` activates it.

    Raises:
        UsageError: the folder holds no adapter, or PEFT cannot have it beside those that are there.
        VerificationError: its tensors do not fit its configuration and this base, or were never trained.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    refuse_missing_folder(path)
    folder = Path(path)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file() or not (folder / "adapter_config.json").is_file():
        raise UsageError(f"{path}: not an adapter folder; adapter_config.json and adapter_model.safetensors are needed")
    name = f"adapter{len(model.peft_config)}"
    with one_line(path, "adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns where check_adapter_tensors refuses
        stored = load_file(weights)
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False, autocast_adapter_dtype=True)
    try:
        check_adapter_tensors(stored, set(get_peft_model_state_dict(model, adapter_name=name)), where=path)
    except Exception:
        model.delete_adapter(name)
        raise
    return name


def use_adapter(model: Any, name: str) -> Any:
    """Make one of the loaded adapters the active one; return the model, in eval mode and without gradients."""
    model.set_adapter(name)
    model.requires_grad_(False)
    return model.eval()
