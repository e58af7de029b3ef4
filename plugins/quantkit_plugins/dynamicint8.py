"""What makes a model faster on a CPU? Integer products: int8 weights, and activations that are rounded to int8 as they come.

The checkpoint is compressed-tensors `int-quantized`: plain transformers loads it and computes with the same rounded numbers in
floating point; vLLM multiplies the integers, and so does `quantkit.backends.integer_kernels` on a CPU. torchao's own dynamic
int8 layers load plainly and multiply integers at once, but around each product they do so much else that they were slower
than dense ones (`benchmarks/int8_cpu.py`), and they hand adapters no gradients. Without calibration; SmoothQuant is the same
format after large activation channels were scaled down.

The weights are those of RTN with weights_bits 8, group_size -1 and activations_bits 8, rounded by the same hook. It is a method
of its own for its name: what makes a CPU faster should not have to be put together from three options.
"""

from dataclasses import dataclass

from quantkit import MethodInfo, PlanContext, QuantizationPlan, hookimpl, shared_hooks
from quantkit.integer_plans import SERVED_W8A8, integer_method, integer_plan


@dataclass(frozen=True)
class DynamicInt8Options:
    """DynamicINT8 has no settings: weights have 8 bits and one scale per row, activations 8 bits and one scale per token."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare DynamicINT8."""
    return integer_method(
        "DynamicINT8",
        "Int8 weights and dynamic int8 activations for CPU inference; no calibration",
        DynamicInt8Options,
        takes="The weights alone.",
        served=SERVED_W8A8,
        limits="No calibration: KL from 16 bit 0.035 where SmoothQuant has 0.016.",
    )


@hookimpl
def build_quantization_plan(options: DynamicInt8Options, context: PlanContext) -> QuantizationPlan:
    """Plan W8A8: int8 weights with one scale per row, activations rounded per token; the head stays dense."""
    return integer_plan("DynamicINT8", options, context, weights_bits=8, group_size=-1, symmetric=True, activations_bits=8)


quantize_model = shared_hooks.round_to_nearest
prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
