"""A method of somebody else that stores a format of its own: 8-bit codes, which transformers reads once its reader is known."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, Stage, hookimpl
from quantkit.backends import LayerFacts
from quantkit.backends.emission import StoredLinear
from quantkit.exporting import Row
from quantkit.exporting.answers import as_it_is, from_parent, written
from quantkit.exporting.grids import dense_model, repack_model
from quantkit.numerics.grids import QuantizedWeight, UniformGrid, quantize

FACTS = LayerFacts(8, "int8", format="toy8", group_size=-1, symmetric=True)
READER = "https://example.org/toy8"
ANSWERS = {
    "transformers": as_it_is("Plain `from_pretrained` reads it.", READER, "torch"),
    "dense": written("exact", "The weights that the layers compute with.", READER),
    "gptq": written("exact", "The same codes and scales.", READER),
    "awq": from_parent("AWQ --format awq"),
}


@dataclass(frozen=True)
class Options:
    """TOY8 has no settings."""


class ToyLinear(StoredLinear):
    """Codes and one scale a row."""

    def quantized(self) -> QuantizedWeight:
        return QuantizedWeight(self.codes, self.steps, None, 8, -1)  # type: ignore[arg-type]


def toy_layer(linear: nn.Linear, codes: torch.Tensor, steps: torch.Tensor) -> ToyLinear:
    return ToyLinear(FACTS, (linear.out_features, linear.in_features), {"codes": codes, "steps": steps}, linear.bias)


def linears(model: Any) -> dict[str, nn.Linear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and name != "lm_head"}


def reader() -> None:
    """Let transformers know the format, as the package of its makers would."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if "toy8" in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return

    @register_quantization_config("toy8")
    class ToyConfig(QuantizationConfigMixin):
        def __init__(self, **stated: Any) -> None:
            self.quant_method = "toy8"

    @register_quantizer("toy8")
    class ToyReader(HfQuantizer):
        requires_calibration = True

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            for name, linear in linears(model).items():
                rows, columns = linear.out_features, linear.in_features
                codes = torch.empty(rows, columns, dtype=torch.int8, device="meta")
                model.set_submodule(name, toy_layer(linear, codes, torch.empty(rows, 1, dtype=model.dtype, device="meta")))

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return False


@hookimpl
def declare_method() -> MethodInfo:
    return MethodInfo(name="TOY8", summary="a toy", options=Options, stages=frozenset({Stage.TRAINED}), claims=("toy8",))


@hookimpl
def declare_exports() -> dict[str, Row]:
    return {"toy8": Row(title="TOY8's own format", answers=ANSWERS)}


@hookimpl
def build_quantization_plan(options: Options, context: PlanContext) -> QuantizationPlan:
    facts = {"weights_bits": 8, "weights_dtype": "int8", "format": "toy8", "group_size": -1, "symmetric": True}
    return context.plan(QuantizationSpec(method="TOY8", lm_head_dtype=context.head_dtype, **facts), options)


@hookimpl
def load_kwargs() -> dict[str, Any]:
    reader()
    return {}


@hookimpl
def quantize_model(model: Any) -> Any:
    grid = UniformGrid(8, -1, scale_dtype=model.dtype)
    for name, linear in linears(model).items():
        found = quantize(linear.weight.data, grid, layer=name)
        model.set_submodule(name, toy_layer(linear, found.codes, found.scale))
    model.config.quantization_config = {"quant_method": "toy8", "bits": 8}
    return model


@hookimpl
def export_model(model: Any, target: str) -> Any:
    if target == "dense":
        return dense_model(model)
    layers = {name: part.quantized() for name, part in model.named_modules() if isinstance(part, ToyLinear)}
    return repack_model(model, layers, target, {})


HOOKS = {name: item for name, item in vars().items() if hasattr(item, "quantkit_impl")}


def plugin(**hooks: Any) -> ModuleType:
    """Return the plugin, with other hooks than its own where they are given; None leaves one out."""
    module = ModuleType("toy8")
    vars(module).update({name: item for name, item in {**HOOKS, **hooks}.items() if item is not None})
    return module
