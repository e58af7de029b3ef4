"""What does 8-bit floating point cost? Weights in float8_e4m3fn with one scale per row, on request activations too.

No calibration: scales of weights come from the weights, those of activations from each token while the model runs. The
checkpoint is compressed-tensors `float-quantized`; GPUs with such units multiply it directly, a CPU computes in the model's
own data type with the same numbers.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, MethodNotes, PlanContext, QuantizationPlan, QuantizationSpec, Stage, hookimpl, shared_hooks
from quantkit.calibration import QuantizationWork


@dataclass(frozen=True)
class Fp8Options:
    """Settings of FP8."""

    activations_bits: Literal[8] | None = None
    """8: each token's activations are rounded to float8_e4m3fn while the model runs; none: weights only."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare FP8."""
    return MethodInfo(
        name="FP8",
        summary="8-bit floating-point weights, on request activations too; no calibration",
        options=Fp8Options,
        notes=MethodNotes(
            paper="arXiv:2209.05433",
            takes="The weights alone.",
            served=(
                "vLLM: 8-bit products on Ada, Hopper and newer, weights only on Turing and Ampere; transformers with"
                " compressed-tensors computes in the model's data type."
            ),
            limits="8 bits only; activations have one scale a token.",
        ),
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
    )


@hookimpl
def build_quantization_plan(options: Fp8Options, context: PlanContext) -> QuantizationPlan:
    """Plan float8 weights with one scale per row; the head stays dense."""
    spec = QuantizationSpec(
        method="FP8",
        weights_bits=8,
        weights_dtype="float8_e4m3fn",
        format="compressed-tensors",
        group_size=-1,
        symmetric=True,
        activations_bits=options.activations_bits,
        lm_head_dtype=context.head_dtype,
    )
    return context.plan(spec, options)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, work: QuantizationWork) -> Any:
    """Round every linear layer but the head, block by block."""
    from quantkit.numerics.float8 import Float8Grid, quantize_float8
    from quantkit.numerics.grids import QuantizedWeight
    from quantkit.quantizing import solve_weights, store_in_format

    def solve(name: str, linear: Any) -> QuantizedWeight:
        return quantize_float8(linear.weight.data, model.dtype, layer=name)

    return store_in_format(plan, model, solve_weights(plan, model, work, solve, grid=Float8Grid(model.dtype)))


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
