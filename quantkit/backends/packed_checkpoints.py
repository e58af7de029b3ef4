"""How is a checkpoint in the GPTQ or AWQ format loaded where no library for it is installed?

transformers refuses these formats without gptqmodel, which has to be built from source and brings layers of its own that say
nothing about their weights. Here the tensors are unpacked, transformers builds the model from the dense state (so tied weights,
buffers and missing keys are its business, as ever), and the layers are then put back in the form in which they were stored:
what is measured and run is what the folder holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import UsageError
from quantkit.files import read_json

FORMATS = ("gptq", "awq")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def is_packed_checkpoint(folder: Path) -> bool:
    """Whether a model folder's configuration names a format that is read here."""
    path = folder / "config.json"
    stated = read_json(path).get("quantization_config") if path.is_file() else None
    return isinstance(stated, Mapping) and stated.get("quant_method") in FORMATS


def load_packed_checkpoint(folder: Path, *, dtype: str, device: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Return the model of a GPTQ or AWQ folder, its scales in `dtype` (`auto`: the stored one), and the loading report.

    Raises:
        UsageError: tensors of a layer are missing, or the layout is one that is not read here.
        VerificationError: a layer contradicts the configuration.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    stated = config.quantization_config
    stated = dict(stated if isinstance(stated, Mapping) else stated.to_dict())
    del config.quantization_config
    wanted = (config.dtype or torch.float16) if dtype == "auto" else getattr(torch, dtype)
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    layers = {}
    for name in [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]:
        parts = {part: tensors.pop(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in tensors}
        if missing := {"qweight", "qzeros", "scales"} - set(parts):
            raise UsageError(f"{folder}: {name} has no {', '.join(sorted(missing))} beside its qweight")
        parts["scales"] = parts["scales"].to(wanted)
        layers[name] = _layer(parts, stated, f"{folder}: {name}")
        tensors[f"{name}.weight"] = layers[name].quantized().dequantize()
    with torch.device("meta"):
        family = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    model, report = family.from_pretrained(
        None, config=config, state_dict=tensors, dtype=wanted, device_map={"": device}, output_loading_info=True
    )
    for name, layer in layers.items():
        layer.register_parameter("bias", model.get_submodule(name).bias)
        model.set_submodule(name, layer.to(device))
    model.config.quantization_config = stated
    return model, report


def _layer(parts: Mapping[str, Any], stated: Mapping[str, Any], layer: str) -> Any:
    from quantkit.backends.awq_format import read_awq
    from quantkit.backends.gptq_format import read_gptq

    read = read_gptq if stated["quant_method"] == "gptq" else read_awq
    return read(parts, None, stated, layer=layer)
