"""How does one train any adapter on a 4-bit base? NF4 or FP4 by bitsandbytes, scales quantized again or not.

The variants are told apart by tags: plain NF4 has none; `fp4`, `dq` (double quantization) and `cal` (rounded with calibration
rows instead of to the nearest value) name what differs.
"""

from dataclasses import dataclass
from typing import Literal

from quantkit import (
    MethodInfo,
    MethodNotes,
    PlanContext,
    QuantizationPlan,
    QuantizationSpec,
    QuantMethod,
    Stage,
    hookimpl,
    shared_hooks,
)
from quantkit.integer_plans import SETTING


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
        notes=MethodNotes(
            paper="arXiv:2305.14314",
            takes=f"The weights alone, while loading: 4 {SETTING}, calibrated (32 × 256 tokens) 102.",
            served=(
                "bitsandbytes' kernels; vLLM reads it on NVIDIA GPUs, without tensor parallelism, and its removal is proposed."
            ),
            limits=(
                "Weights are dequantized for each product. NF4 has its levels closest where weights are densest, FP4 has not."
            ),
        ),
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


load_kwargs = shared_hooks.load_4bit
quantize_model = shared_hooks.calibrate_4bit
prepare_model = shared_hooks.prepare_bitsandbytes
post_train_merge = shared_hooks.fold_into_dense
