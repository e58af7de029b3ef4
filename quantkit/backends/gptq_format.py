"""How do codes and scales become a checkpoint in the GPTQ format, as AutoGPTQ introduced it and GPTQModel and vLLM read it?

Per layer: `qweight` (codes packed along the input axis), `qzeros`, `scales`, `g_idx` (the group of each input column).

Three choices, each where the libraries differ:

* **Zero points.** The original format, `checkpoint_format: gptq`, stores them minus one, so a zero point of 0 has no place:
  kernels read it back as 2^bits, and GPTQModel refuses asymmetric weights stored so. Symmetric weights are written as `gptq`,
  which everything reads; asymmetric ones as `gptq_v2`, which stores zero points as they are (GPTQModel, vLLM since 0.11.1).
* **Order.** Solvers here leave every column in the group of its place, also when they rounded the columns in another order.
  So `g_idx` is the natural one and `desc_act` is false: what was done stands in `meta`, and no kernel has to permute.
* **Layers left out.** Each is named under `dynamic` (GPTQModel, vLLM), and those that are quantized under
  `modules_in_block_to_quantize` (transformers through optimum, vLLM); for people and `measure`,
  `modules_to_not_convert` says it, too.

Scales are stored in the model's data type, to which every loader converts them.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantkit.backends.emission import StoredLinear, checked_layers, signed, unsigned
from quantkit.backends.facts import LayerFacts
from quantkit.errors import UsageError, VerificationError
from quantkit.numerics.grids import QuantizedWeight
from quantkit.numerics.packing import GptqTensors, pack_gptq, unpack_bits, unpack_gptq

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GptqLinear(StoredLinear):
    """A linear layer as the GPTQ format stores it; shapes as in `quantkit.numerics.packing.GptqTensors`."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def __init__(self, tensors: GptqTensors, facts: LayerFacts, bias: nn.Parameter | None, *, v2: bool) -> None:
        parts = {name: getattr(tensors, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        super().__init__(facts, (tensors.scales.shape[1], tensors.g_idx.numel()), parts, bias)
        self.v2 = v2

    def quantized(self) -> QuantizedWeight:
        """Return the weight that the parameters hold."""
        tensors = GptqTensors(self.qweight.data, self.qzeros.data, self.scales.data, self.g_idx.data)
        return signed(*unpack_gptq(tensors, bits=self.facts.weights_bits, v2=self.v2), self.facts)


def store_gptq(
    model: "PreTrainedModel", layers: Mapping[str, QuantizedWeight], *, options: Mapping[str, Any] | None = None
) -> "PreTrainedModel":
    """Replace these linear layers, in place, by GPTQ ones, and state the format in the model's configuration.

    `options` are the method's own (`damp_percent`, `desc_act`, …); those that the format has a word for go along.

    Raises:
        UsageError: layers do not fit the model or the format; names the layer.
    """
    linears, facts = checked_layers(model, layers, format="gptq")
    v2 = not facts.symmetric
    new = {}
    for name, quantized in layers.items():
        codes, zero_point = unsigned(quantized)
        tensors = pack_gptq(codes, quantized.scale, zero_point, bits=quantized.bits, v2=v2)
        new[name] = GptqLinear(tensors, facts, linears[name].bias, v2=v2)
    for name, module in new.items():
        model.set_submodule(name, module)
    head = model.get_output_embeddings()
    left_out = [name for name, module in linears.items() if name not in layers and module is not head]
    model.config.quantization_config = quantization_config(facts, left_out, list(layers), options or {})
    return model


def quantization_config(
    facts: LayerFacts, left_out: list[str], quantized: list[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`; `left_out` and `quantized` name linear layers, the head aside."""
    from quantkit import __version__

    stated = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if facts.symmetric else "gptq_v2",
        "bits": facts.weights_bits,
        "group_size": facts.group_size,
        "sym": facts.symmetric,
        "desc_act": False,
        "static_groups": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "damp_percent": options.get("damp_percent", 0.01),
        "true_sequential": bool(options.get("true_sequential", False)),
        "meta": {"quantizer": [f"quantkit:{__version__}"], "act_order": bool(options.get("desc_act", False))},
    }
    if left_out:
        stated["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in left_out}
        stated["modules_in_block_to_quantize"] = [quantized]
        stated["modules_to_not_convert"] = left_out
    return stated


def read_gptq(tensors: Mapping[str, Tensor], bias: nn.Parameter | None, config: Mapping[str, Any], *, layer: str) -> GptqLinear:
    """Return the layer that a checkpoint's tensors (`qweight`, …) state, under its `quantization_config`.

    Raises:
        UsageError: the columns are stored in activation order.
        VerificationError: the zero points contradict `sym`, or cannot be told.
    """
    bits, symmetric = int(config["bits"]), bool(config.get("sym", True))
    v2 = (config.get("checkpoint_format") or config.get("format")) == "gptq_v2"
    inputs, groups = tensors["qweight"].shape[0] * 32 // bits, tensors["scales"].shape[0]
    natural = (torch.arange(inputs) // (inputs // groups)).to(torch.int32)
    if not torch.equal(tensors.get("g_idx", natural).cpu(), natural):
        raise UsageError(
            f"{layer}: its columns are stored in activation order (g_idx), which cannot be read here; gptqmodel can"
        )
    parts = GptqTensors(tensors["qweight"], tensors["qzeros"], tensors["scales"], natural.to(tensors["qweight"].device))
    stored = unpack_bits(parts.qzeros, bits, parts.scales.shape[1])
    if symmetric and bool((stored != (1 << (bits - 1)) - (0 if v2 else 1)).any()):
        raise VerificationError(f"{layer}: the configuration says sym, but there are zero points beside the middle of the grid")
    if not v2 and bool((stored == (1 << bits) - 1).any()):
        raise VerificationError(
            f"{layer}: a zero point is stored as {(1 << bits) - 1}, which format gptq reads as 0 or as {1 << bits}"
            " (libraries differ); only gptq_v2 can hold it"
        )
    facts = LayerFacts(bits, f"int{bits}", format="gptq", group_size=int(config["group_size"]), symmetric=symmetric)
    return GptqLinear(parts, facts, bias, v2=v2)
