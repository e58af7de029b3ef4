"""How do the codes of one integer format get into another without being touched?

Codes, scales and zero points are read as they are stored and handed to the other format's own writer. Dequantizing and
quantizing again, the usual road between formats, may give other codes wherever a group's largest weight is not attained.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends import dense_layer, layer_facts
from quantkit.errors import VerificationError
from quantkit.files import read_json

if TYPE_CHECKING:
    from quantkit.numerics.grids import QuantizedWeight


def read_grids(folder: Path, model: Any) -> "dict[str, QuantizedWeight]":
    """Return layer → weight as a folder stores it; `model` is the folder, loaded: GPTQ and AWQ layers are read off it."""
    from quantkit.backends.compressed_tensors import stored_layers
    from quantkit.backends.emission import StoredLinear

    stated = read_json(folder / "config.json")["quantization_config"]
    if stated.get("quant_method") == "compressed-tensors":
        return {name: quantized for name, quantized, _ in stored_layers(folder)}
    return {name: part.quantized() for name, part in model.named_modules() if isinstance(part, StoredLinear)}


def repack_model(model: Any, layers: "Mapping[str, QuantizedWeight]", target: str, options: Mapping[str, Any]) -> Any:
    """Put these weights into the model's layers in another format, in place; return the model, ready for `save_pretrained`.

    `options` are those of the method that made the weights; what the format has a word for goes along.

    Raises:
        UsageError: the format cannot hold them; names the layer.
    """
    import torch
    from torch import nn

    from quantkit.backends.awq_format import store_awq
    from quantkit.backends.compressed_tensors import compress_model
    from quantkit.backends.gptq_format import store_gptq

    for name, quantized in layers.items():
        module = model.get_submodule(name)
        dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(quantized.dequantize(), requires_grad=False)
        dense.register_parameter("bias", module.bias)
        model.set_submodule(name, dense)
    _forget_quantizer(model)
    if target == "compressed-tensors":
        return compress_model(model, layers)
    if target == "gptq":
        return store_gptq(model, layers, options=options)
    if any(item.zero_point is None for item in layers.values()):
        layers = {name: replace(q, zero_point=torch.zeros(q.scale.shape, dtype=torch.int8)) for name, q in layers.items()}
    return store_awq(model, layers)


def dense_model(model: Any) -> Any:
    """Replace every quantized layer by an ordinary one in the model's data type, in place; return it for `save_pretrained`.

    Raises:
        VerificationError: a layer's weights cannot be read.
    """
    from quantkit.layers import linear_layers

    for name, layer in linear_layers(model).items():
        if layer_facts(layer).format != "dense":
            model.set_submodule(name, dense_layer(layer).to(model.dtype))
    _forget_quantizer(model)
    model.config.__dict__.pop("quantization_config", None)
    return model


def _forget_quantizer(model: Any) -> None:
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(attribute, None)


def require_equal(before: "Mapping[str, QuantizedWeight]", after: "Mapping[str, QuantizedWeight]") -> int:
    """Compare codes, scales and zero points of every layer bit for bit; return how many codes that were.

    Raises:
        VerificationError: a layer is missing or differs.
    """
    if missing := sorted(set(before) ^ set(after)):
        raise VerificationError(f"{missing[0]} is quantized on one side only; nothing was written")
    codes = 0
    for name, one in before.items():
        other = after[name]
        offsets = [None if q.zero_point is None or not bool(q.zero_point.any()) else q.zero_point for q in (one, other)]
        same_offset = all(item is None for item in offsets) or (
            offsets[0] is not None and offsets[1] is not None and bool(offsets[0].equal(offsets[1]))
        )
        if not (same_offset and bool(one.codes.equal(other.codes)) and bool(one.scale.equal(other.scale))):
            raise VerificationError(f"{name} does not hold the codes and scales that it was given; nothing was written")
        codes += one.codes.numel()
    return codes
