"""What does a run without quantization do? It trains on, and saves, weights in a plain data type.

The base is loaded in the compute data type; with NoPeft all of its weights are trained.
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
    hookimpl,
    shared_hooks,
)


@dataclass(frozen=True)
class NoQuantOptions:
    """NoQuant has no settings."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare NoQuant."""
    return MethodInfo(
        name=QuantMethod.NO_QUANT,
        summary="Weights in bfloat16, float16 or float32, as the base has them",
        options=NoQuantOptions,
        notes=MethodNotes(
            takes="Nothing is quantized.",
            served="Everything that reads transformers' folders.",
            limits="16 or 32 bits a weight.",
        ),
        stages=frozenset({Stage.BASE}),
        claims=("dense",),
    )


@hookimpl
def build_quantization_plan(context: PlanContext) -> QuantizationPlan:
    """Plan a base that is stored dense."""
    return context.plan(QuantizationSpec.dense(context.dense_dtype, lm_head_dtype=context.head_dtype), NoQuantOptions())


@hookimpl
def load_kwargs() -> dict[str, Any]:
    """Ask for nothing beyond the compute data type."""
    return {}


@hookimpl
def quantize_model(model: Any) -> Any:
    """Return the model as it is."""
    return model


@hookimpl
def prepare_model(plan: QuantizationPlan, model: Any) -> Any:
    """Freeze the base under adapters; without them, all weights are trained."""
    model.requires_grad_(plan.adapter.kind == "NoPeft")
    return model


post_train_merge = shared_hooks.fold_into_dense
