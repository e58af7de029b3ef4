"""What makes a model faster on a CPU? Integer products: int8 weights, and activations that are rounded to int8 as they come.

The checkpoint is compressed-tensors `int-quantized`: plain transformers loads it and computes with the same rounded numbers in
floating point; vLLM multiplies the integers, and so does `quantkit.backends.integer_kernels` on a CPU. torchao's own dynamic
int8 layers load plainly and multiply integers at once, but around each product they do so much else that they were slower
than dense ones (`benchmarks/int8_cpu.py`), and they hand adapters no gradients. Without calibration; SmoothQuant is the same
format after large activation channels were scaled down.
"""

from dataclasses import dataclass
from typing import Any

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, Stage, hookimpl
from quantkit.calibration import QuantizationWork


@dataclass(frozen=True)
class DynamicInt8Options:
    """DynamicINT8 has no settings: weights have 8 bits and one scale per row, activations 8 bits and one scale per token."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare DynamicINT8."""
    return MethodInfo(
        name="DynamicINT8",
        summary="Int8 weights and dynamic int8 activations for CPU inference; no calibration",
        options=DynamicInt8Options,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
    )


@hookimpl
def build_quantization_plan(context: PlanContext) -> QuantizationPlan:
    """Plan W8A8: int8 weights with one scale per row, activations rounded per token; the head stays dense."""
    return QuantizationPlan(
        method="DynamicINT8",
        stage=context.stage,
        spec=QuantizationSpec(
            method="DynamicINT8",
            weights_bits=8,
            weights_dtype="int8",
            format="compressed-tensors",
            group_size=-1,
            symmetric=True,
            activations_bits=8,
            lm_head_dtype=context.head_dtype,
        ),
        adapter=context.adapter,
        compute_dtype=context.compute_dtype,
    )


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
    """Fold the adapters into the dequantized base; the result is float32 and rounds no activations."""
    from quantkit.merging import fold_adapters

    return fold_adapters(model)
