"""How do codes and scales become a checkpoint that any loader of compressed-tensors opens, and what do its layers hold?

The quantized layers are replaced by `PackedLinear` modules whose parameters are the tensors of the standard format, and
`config.quantization_config` says how to read them; `save_pretrained` then writes an ordinary checkpoint, and the model in
memory computes what a loader of it computes. Handing the library dense weights and letting it quantize again, the usual
road, rounds twice and may change codes.

One key more than the standard's stands in the configuration of weights-only layers: `dequantize: true`. Transformers
takes it for its own load argument, so a plain `from_pretrained(folder)` unpacks the weights while loading; other readers
ignore it. Without it asymmetric weights do not load at all (transformers allocates their packed zero points unpacked) and
PEFT finds no `weight` to attach adapters to. `repack_model` puts the packed layers back into a model loaded so.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantkit.backends.compressed_layout import quantization_config, storage_format
from quantkit.backends.emission import StoredLinear, checked_layers
from quantkit.backends.facts import LayerFacts, dtype_name
from quantkit.errors import UsageError, VerificationError
from quantkit.files import read_json
from quantkit.numerics.float8 import round_tokens_to_float8
from quantkit.numerics.grids import QuantizedWeight
from quantkit.numerics.packing import pack_compressed_tensors, unpack_compressed_tensors
from quantkit.spec import DENSE_BITS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedLinear(StoredLinear):
    """A linear layer whose parameters are those of the compressed-tensors format.

    Weights only (`pack-quantized`): `weight_packed` int32 `[out, ceil(in·bits/32)]`, `weight_scale` `[out, groups]`,
    `weight_shape` int64 `[2]` and, if asymmetric, `weight_zero_point` int32 `[ceil(out·bits/32), groups]`.
    8-bit weights and activations (`int-quantized`): `weight` int8 `[out, in]`, `weight_scale`, `weight_zero_point` int8.
    8-bit floating point (`float-quantized`): `weight` float8_e4m3fn `[out, in]`, `weight_scale`. See `storage_format`.
    To merge, take `dense_layer` instead.
    """

    weight_scale: Tensor
    weight_packed: Tensor

    def __init__(self, quantized: QuantizedWeight, bias: nn.Parameter | None, *, activations_bits: int | None = None) -> None:
        outputs, inputs = quantized.codes.shape
        tensors = {"weight_scale": quantized.scale}
        if _storage_of(quantized, activations_bits) == "pack-quantized":
            tensors["weight_packed"] = pack_compressed_tensors(quantized.codes, quantized.bits)
            tensors["weight_shape"] = torch.tensor(quantized.codes.shape, dtype=torch.int64)
            if quantized.zero_point is not None:
                tensors["weight_zero_point"] = pack_compressed_tensors(quantized.zero_point, quantized.bits, dim=0)
        else:
            tensors["weight"] = quantized.codes
            if quantized.zero_point is not None:
                tensors["weight_zero_point"] = quantized.zero_point
        facts = LayerFacts(
            format="compressed-tensors",
            weights_bits=quantized.bits,
            weights_dtype=quantized.weights_dtype,
            group_size=quantized.group_size,
            symmetric=quantized.zero_point is None,
            activations_bits=activations_bits,
        )
        parts = {name: tensor.to(quantized.codes.device) for name, tensor in tensors.items()}
        super().__init__(facts, (outputs, inputs), parts, bias)

    def quantized(self) -> QuantizedWeight:
        """Return the weight that the parameters hold."""
        bits, group_size = self.facts.weights_bits, self.facts.group_size or -1
        zero_point: Tensor | None = getattr(self, "weight_zero_point", None)
        if "weight_packed" not in self._parameters:
            return QuantizedWeight(self.weight.data, self.weight_scale, zero_point, bits, group_size)
        if zero_point is not None:
            zero_point = unpack_compressed_tensors(zero_point, bits, self.out_features, dim=0)
        codes = unpack_compressed_tensors(self.weight_packed, bits, self.in_features)
        return QuantizedWeight(codes, self.weight_scale, zero_point, bits, group_size)

    def forward(self, input: Tensor) -> Tensor:
        """Return input · Wᵀ + b, the input rounded per token first when activations are quantized."""
        if self.facts.activations_bits is not None:
            input = round_inputs(input, self.facts)
        return super().forward(input)


def _storage_of(quantized: QuantizedWeight, activations_bits: int | None) -> str:
    return storage_format(
        bits=quantized.bits,
        group_size=quantized.group_size,
        weights_dtype=quantized.weights_dtype,
        activations_bits=activations_bits,
    )


def round_inputs(values: Tensor, facts: LayerFacts) -> Tensor:
    """Round what enters a layer `[..., features]` as its format says: to integers, or to 8-bit floats beside such weights."""
    if facts.weights_dtype.startswith("float"):
        return round_tokens_to_float8(values)
    return round_tokens(values, facts.activations_bits or 8)


def round_tokens(values: Tensor, bits: int) -> Tensor:
    """Round each token `[..., features]` to a symmetric grid over its own range (dynamic per-token quantization).

    The arithmetic is compressed-tensors' (`calculate_qparams`, `fake_quantize`), in the data type of the values.
    """
    q_max = (1 << (bits - 1)) - 1
    scale = values.abs().amax(-1, keepdim=True) / (((1 << bits) - 1) / 2)
    scale = torch.where(scale == 0, torch.full_like(scale, torch.finfo(scale.dtype).eps), scale)
    return (values / scale).clamp(-q_max - 1, q_max).round() * scale


def compress_model(
    model: "PreTrainedModel", layers: Mapping[str, QuantizedWeight], *, activations_bits: int | None = None
) -> "PreTrainedModel":
    """Replace these linear layers, in place, by packed ones, and state the format in the model's configuration.

    `layers` maps module names to weights that share one grid; every other linear layer goes on the format's ignore list.
    `activations_bits` 8 makes loaders round the inputs of these layers per token (`round_inputs`).

    Raises:
        UsageError: a name is no linear layer, shapes or scale types disagree with the model, or the grids differ.
    """
    if activations_bits not in (None, 8):
        raise UsageError(f"activations_bits is {activations_bits}; inputs are rounded to 8 bits or not at all")
    linears, facts = checked_layers(model, layers, format="compressed-tensors")
    for name, quantized in layers.items():
        _require_rounding(name, quantized, activations_bits)
    for name, quantized in layers.items():
        model.set_submodule(name, PackedLinear(quantized, linears[name].bias, activations_bits=activations_bits))
    model.config.quantization_config = quantization_config(
        bits=facts.weights_bits,
        group_size=facts.group_size or -1,
        symmetric=bool(facts.symmetric),
        weights_dtype=facts.weights_dtype,
        activations_bits=activations_bits,
        ignore=[name for name in linears if name not in layers],
    )
    return model


def repack_model(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """Put the packed layers of a checkpoint of ours back into the model that a plain load made dense, in place.

    Raises:
        VerificationError: a dense layer is not what the packed one says it is.
    """
    for name, quantized, facts in stored_layers(folder):
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear) or not torch.equal(linear.weight.cpu(), quantized.dequantize()):
            raise VerificationError(f"{folder}: {name} in memory is not what the folder holds; load it again")
        packed = PackedLinear(quantized, linear.bias, activations_bits=facts.activations_bits)
        model.set_submodule(name, packed.to(linear.weight.device))
    model.config.quantization_config = read_json(folder / "config.json")["quantization_config"]
    return model


def stored_layers(folder: Path) -> Iterator[tuple[str, QuantizedWeight, LayerFacts]]:
    """Yield name, weight and facts of every quantized layer of a compressed-tensors folder of ours."""
    from safetensors import safe_open

    (group,) = read_json(folder / "config.json")["quantization_config"]["config_groups"].values()
    weights, inputs = group["weights"], group.get("input_activations")
    bits, group_size = int(weights["num_bits"]), int(weights["group_size"] or -1)
    facts = LayerFacts(
        format="compressed-tensors",
        weights_bits=bits,
        weights_dtype="float8_e4m3fn" if weights["type"] == "float" else f"int{bits}",
        group_size=group_size,
        symmetric=bool(weights["symmetric"]),
        activations_bits=None if inputs is None else int(inputs["num_bits"]),
    )
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in sorted(item.removesuffix(".weight_scale") for item in names if item.endswith(".weight_scale")):
                scale, zero_name = tensors.get_tensor(f"{name}.weight_scale"), f"{name}.weight_zero_point"
                zero_point = tensors.get_tensor(zero_name) if zero_name in names else None
                if f"{name}.weight_packed" in names:
                    outputs, columns = (int(size) for size in tensors.get_tensor(f"{name}.weight_shape"))
                    codes = unpack_compressed_tensors(tensors.get_tensor(f"{name}.weight_packed"), bits, columns)
                    if zero_point is not None:
                        zero_point = unpack_compressed_tensors(zero_point, bits, outputs, dim=0)
                else:
                    codes = tensors.get_tensor(f"{name}.weight")
                yield name, QuantizedWeight(codes, scale, zero_point, bits, group_size), facts


def dense_layer(layer: Any) -> nn.Linear:
    """Return an ordinary float32 linear layer with the weights that this (packed or unpacked) one computes with."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    weight = layer.quantized().dequantize() if hasattr(layer, "quantized") else layer.weight.detach()
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    bias: nn.Parameter | None = layer.bias
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False))
    return linear


def layer_facts(module: Any) -> LayerFacts:
    """Return what a layer with the library's `quantization_scheme` holds; one that it has unpacked is dense.

    Raises:
        VerificationError: the scheme quantizes no weights, or by a strategy that `QuantizationSpec` has no word for.
    """
    scheme = module.quantization_scheme
    weights = scheme.weights
    if weights is None:
        raise VerificationError("a compressed-tensors layer has a scheme without weights; it cannot be measured")
    strategy = getattr(weights.strategy, "value", weights.strategy)
    group_sizes = {"group": weights.group_size, "tensor_group": weights.group_size, "channel": -1, "tensor": None}
    if strategy not in group_sizes:
        raise VerificationError(f"compressed-tensors strategy {strategy!r} cannot be measured yet")
    kind = getattr(weights.type, "value", weights.type)
    floats = {8: "float8_e4m3fn", 4: "fp4"}
    dtype = f"int{weights.num_bits}" if kind == "int" else floats.get(weights.num_bits, f"float{weights.num_bits}")
    inputs = scheme.input_activations
    activations_bits = None if inputs is None else inputs.num_bits
    status = getattr(module, "quantization_status", None)
    if getattr(status, "value", status) == "decompressed":
        dense = dtype_name(module.weight.dtype)
        return LayerFacts(DENSE_BITS[dense], dense, activations_bits=activations_bits)
    return LayerFacts(
        weights_bits=weights.num_bits,
        weights_dtype=dtype,
        format="compressed-tensors",
        group_size=group_sizes[strategy],
        symmetric=bool(weights.symmetric),
        activations_bits=activations_bits,
    )


def _require_rounding(name: str, quantized: QuantizedWeight, activations_bits: int | None) -> None:
    packed = _storage_of(quantized, activations_bits) == "pack-quantized"
    if activations_bits is not None and packed and quantized.zero_point is not None:
        raise UsageError(
            f"{name} has {quantized.bits}-bit weights in groups of {quantized.group_size} with zero points; transformers loads"
            " such weights only by unpacking them, and then leaves activations unrounded. Use symmetric weights"
        )
