"""What does plain rounding cost? Every weight becomes the nearest level of its group's grid: what better methods must beat.

Round-to-nearest needs no calibration text and seconds instead of minutes. For a group of columns with scale s and zero
point z, q = clamp(round(w/s) + z) and ŵ = (q − z)·s; s and z span the group's own range (`quantkit.numerics.grids`).
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, Stage, UsageError, hookimpl
from quantkit.calibration import QuantizationWork


@dataclass(frozen=True)
class RtnOptions:
    """Settings of RTN."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight."""
    group_size: int = 128
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool = True
    """Grid without zero points; false: each group has one, at a cost of as many bits as a weight."""
    activations_bits: Literal[8] | None = None
    """8: each token's activations are rounded to 8 bits at run time (W8A8 with 8-bit rows); none: weights only."""

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"group_size is {self.group_size}; it must be a number of columns, or -1 for the whole row")
        if self.activations_bits is not None and not self.symmetric:
            raise UsageError(
                "activations_bits is 8 and symmetric false; transformers loads weights with zero points only by unpacking them,"
                " and then leaves activations unrounded. Use symmetric weights"
            )


@hookimpl
def declare_method() -> MethodInfo:
    """Declare RTN."""
    return MethodInfo(
        name="RTN",
        summary="Round-to-nearest integers in groups; no calibration",
        options=RtnOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
    )


@hookimpl
def build_quantization_plan(options: RtnOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. An asymmetric grid carries the tag `asym`."""
    from quantkit.backends.vllm_rules import check_servable_activations

    spec = QuantizationSpec(
        method="RTN",
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format="compressed-tensors",
        group_size=options.group_size,
        symmetric=options.symmetric,
        activations_bits=options.activations_bits,
        lm_head_dtype=context.head_dtype,
        tags=() if options.symmetric else ("asym",),
    )
    return context.plan(spec, options, notes=() if spec.activations_bits is None else check_servable_activations(spec))


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, work: QuantizationWork) -> Any:
    """Round every linear layer but the head, block by block."""
    from quantkit.numerics.grids import QuantizedWeight, quantize
    from quantkit.quantizing import solve_weights, store_in_format, uniform_grid

    grid = uniform_grid(plan.spec, model.dtype)

    def solve(name: str, linear: Any) -> QuantizedWeight:
        return quantize(linear.weight.data.to(work.device), grid, layer=name)

    return store_in_format(plan, model, solve_weights(plan, model, work, solve, grid=grid))


@hookimpl
def prepare_model(model: Any) -> Any:
    """Unpack the layers, so that gradients pass, and freeze the base."""
    from quantkit.quantizing import prepare_for_training

    return prepare_for_training(model)


@hookimpl
def post_train_merge(model: Any) -> Any:
    """Fold the adapters into the dequantized base; the result is float32."""
    from quantkit.merging import fold_adapters

    return fold_adapters(model)
