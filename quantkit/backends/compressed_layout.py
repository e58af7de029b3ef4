"""In which layout of compressed-tensors do which layers stand, and how does `config.json` say so?

Kept apart from the layers themselves, and free of torch, so that the words of the format stand in one place.
"""

from typing import Any


def storage_format(*, bits: int, group_size: int, weights_dtype: str, activations_bits: int | None) -> str:
    """Return the layout that holds such layers.

    `int-quantized` is what int8 kernels read and has no place for less than 8 bits; fewer bits, or groups, stay packed when
    activations are rounded, which transformers reads like the rest (vLLM leaves activations as they are then).
    """
    if weights_dtype.startswith("float"):
        return "float-quantized"
    return "int-quantized" if activations_bits is not None and (bits, group_size) == (8, -1) else "pack-quantized"


def quantization_config(
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    weights_dtype: str = "int",
    activations_bits: int | None = None,
    ignore: list[str],
) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`; `ignore` names the linear layers that stay dense."""
    kind = "float" if weights_dtype.startswith("float") else "int"
    weights = {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
        "dynamic": False,
    }
    inputs = {"num_bits": activations_bits, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    storage = storage_format(bits=bits, group_size=group_size, weights_dtype=weights_dtype, activations_bits=activations_bits)
    group = {
        "targets": ["Linear"],
        "format": storage,
        "weights": weights,
        "input_activations": None if activations_bits is None else inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": storage,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
    } | ({"dequantize": True} if activations_bits is None else {})
