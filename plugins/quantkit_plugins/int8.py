"""How does one train on a base in LLM.int8? Row-wise int8 weights, with outlier columns of the input in 16 bit.

LLM.int8 (arXiv:2208.07339) also quantizes activations while it runs: on CUDA always, on CPU in eval mode only. So a merged
dense model comes close to base plus adapter, but does not equal it.
"""

from dataclasses import dataclass
from typing import Any

from quantkit import (
    MethodInfo,
    MethodNotes,
    PlanContext,
    QuantizationPlan,
    QuantizationSpec,
    QuantMethod,
    Stage,
    UsageError,
    hookimpl,
    shared_hooks,
)


@dataclass(frozen=True)
class Int8Options:
    """Settings of INT8."""

    llm_int8_threshold: float = 6.0
    """Input columns with a value beyond this are multiplied in 16 bit; 0 quantizes all columns."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.llm_int8_threshold < float("inf"):
            raise UsageError(f"llm_int8_threshold is {self.llm_int8_threshold}; it must be 0 or a positive number")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare INT8."""
    return MethodInfo(
        name=QuantMethod.INT8,
        summary="LLM.int8 base (bitsandbytes): int8 weights and activations, outliers in 16 bit",
        options=Int8Options,
        notes=MethodNotes(
            paper="arXiv:2208.07339",
            takes="The weights alone, while loading.",
            served="bitsandbytes' kernels; vLLM reads it on NVIDIA GPUs, and its removal is proposed.",
            limits=(
                "Activations are rounded on CUDA always, on a CPU in eval mode only, so a merged dense model comes close"
                " and is not equal."
            ),
        ),
        stages=frozenset({Stage.BASE}),
        requirements=("bitsandbytes>=0.50",),
        adapters=("LoRa", "DoRa", "VeRa"),
        claims=("bitsandbytes-8bit",),
    )


@hookimpl
def build_quantization_plan(options: Int8Options, context: PlanContext) -> QuantizationPlan:
    """Plan a base in LLM.int8; the head stays dense."""
    spec = QuantizationSpec(
        method=QuantMethod.INT8,
        weights_bits=8,
        weights_dtype="int8",
        format="bitsandbytes",
        symmetric=True,
        activations_bits=8,
        lm_head_dtype=context.head_dtype,
    )
    return context.plan(spec, options)


@hookimpl
def load_kwargs(plan: QuantizationPlan) -> dict[str, Any]:
    """Ask transformers to quantize while loading."""
    from quantkit.backends import bitsandbytes

    return bitsandbytes.load_kwargs_8bit(plan)


@hookimpl
def quantize_model(model: Any) -> Any:
    """Return the model as it is; it was quantized while loading."""
    return model


prepare_model = shared_hooks.prepare_bitsandbytes
post_train_merge = shared_hooks.fold_into_dense
