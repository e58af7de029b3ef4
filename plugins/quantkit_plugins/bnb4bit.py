"""How does one train any adapter on a 4-bit base? NF4 or FP4 by bitsandbytes, scales quantized again or not.

The variants are told apart by tags: plain NF4 has none; `fp4`, `dq` (double quantization) and `cal` (rounded with calibration
rows instead of to the nearest value) name what differs.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, QuantMethod, Stage, hookimpl
from quantkit.calibration import Calibration, QuantizationWork


@dataclass(frozen=True)
class Bnb4BitOptions:
    """Settings of BNB4BIT."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Grid of the weights: nf4 (quantiles of a normal distribution) or fp4 (4-bit floats)."""
    double_quant: bool = False
    """Quantize the scales as well: 0.37 bit less per weight (arXiv:2305.14314, section 3)."""
    calibrated: bool = False
    """Round with error feedback over the grid on calibration rows, instead of to the nearest value."""
    quant_storage: Literal["uint8", "bfloat16", "float16", "float32"] = "uint8"
    """Data type that holds the 4-bit codes, the same bytes in each; FSDP in other tools splits floating-point ones only."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare BNB4BIT."""
    return MethodInfo(
        name=QuantMethod.BNB4BIT,
        summary="4-bit base (bitsandbytes): NF4 or FP4, for LoRA, DoRA and VeRA",
        options=Bnb4BitOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("bitsandbytes>=0.50",),
        adapters=("LoRa", "DoRa", "VeRa"),
        calibration="optional",
        claims=("bitsandbytes-4bit",),
    )


@hookimpl
def build_quantization_plan(options: Bnb4BitOptions, context: PlanContext) -> QuantizationPlan:
    """Plan a base in 4 bit; the head stays dense."""
    variants = {"fp4": options.quant_type == "fp4", "dq": options.double_quant, "cal": options.calibrated}
    spec = QuantizationSpec(
        method=QuantMethod.BNB4BIT,
        weights_bits=4,
        weights_dtype=options.quant_type,
        format="bitsandbytes",
        double_quant=options.double_quant,
        lm_head_dtype=context.head_dtype,
        tags=tuple(tag for tag, chosen in variants.items() if chosen),
    )
    return context.plan(spec, options)


@hookimpl
def load_kwargs(plan: QuantizationPlan) -> dict[str, Any]:
    """Ask transformers to quantize while loading; a base to be calibrated is loaded dense."""
    from quantkit.backends import bitsandbytes

    return {} if plan.options["calibrated"] else bitsandbytes.load_kwargs_4bit(plan)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Round a dense base with calibration; without, return the model as it is: it was quantized while loading."""
    if not plan.options["calibrated"]:
        return model
    from quantkit.backends.calibrated_4bit import quantize_calibrated

    return quantize_calibrated(plan, model, calibration, work)


@hookimpl
def prepare_model(model: Any) -> Any:
    """Freeze the base and keep bitsandbytes from repacking it."""
    from quantkit.backends import bitsandbytes

    return bitsandbytes.prepare_for_training(model)


@hookimpl
def post_train_merge(model: Any) -> Any:
    """Fold the adapters into the dequantized base; the result is float32."""
    from quantkit.merging import fold_adapters

    return fold_adapters(model)
