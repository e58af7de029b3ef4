"""What is QLoRA here? LoRA on an NF4 base with double quantization, as the paper has it (arXiv:2305.14314), and nothing else.

Grid, double quantization and adapter kind are fixed, so that the name says what was done. Any other adapter on a 4-bit base
goes through BNB4BIT. What may be chosen is how the base is rounded: to the nearest value, as the paper does, or with
calibration rows (tag `cal`), which leaves a better base to train on in the same format.
"""

from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class QloraOptions:
    """Settings of QLORA; BNB4BIT has those of other 4-bit bases."""

    calibrated: bool = False
    """Round the base with error feedback over the NF4 grid on calibration rows, instead of to the nearest value."""
    quant_storage: Literal["uint8", "bfloat16", "float16", "float32"] = "uint8"
    """Data type that holds the 4-bit codes, the same bytes in each; FSDP in other tools splits floating-point ones only."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare QLORA."""
    return MethodInfo(
        name=QuantMethod.QLORA,
        summary="LoRA on an NF4 base with double quantization (bitsandbytes)",
        options=QloraOptions,
        notes=MethodNotes(
            paper="arXiv:2305.14314",
            takes="The weights alone, while loading; calibrated, what BNB4BIT takes.",
            served=(
                "bitsandbytes' kernels; vLLM reads it on NVIDIA GPUs, without tensor parallelism, and its removal is proposed."
            ),
            limits="LoRA only, on the base of a run only; BNB4BIT has the rest.",
        ),
        stages=frozenset({Stage.BASE}),
        requirements=("bitsandbytes>=0.50",),
        adapters=("LoRa",),
        calibration="optional",
    )


@hookimpl
def build_quantization_plan(options: QloraOptions, context: PlanContext) -> QuantizationPlan:
    """Plan an NF4 base with double quantization; DoRa and VeRa become LoRa, with a note."""
    spec = QuantizationSpec(
        method=QuantMethod.QLORA,
        weights_bits=4,
        weights_dtype="nf4",
        format="bitsandbytes",
        double_quant=True,
        lm_head_dtype=context.head_dtype,
        tags=("cal",) if options.calibrated else (),
    )
    plan = context.plan(spec, options).with_changes(optim="paged_adamw_32bit" if context.device == "cuda" else None)
    if (kind := context.adapter.kind) not in ("DoRa", "VeRa"):
        return plan
    note = f"QLORA trains LoRa adapters, not {kind}; for {kind} on a 4-bit base use BNB4BIT."
    return plan.with_changes(adapter=replace(context.adapter, kind="LoRa"), notes=(note,))


load_kwargs = shared_hooks.load_4bit
quantize_model = shared_hooks.calibrate_4bit
prepare_model = shared_hooks.prepare_bitsandbytes
post_train_merge = shared_hooks.fold_into_dense
