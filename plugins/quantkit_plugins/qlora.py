"""What is QLoRA here? LoRA on an NF4 base with double quantization, as the paper has it (arXiv:2305.14314), and nothing else.

Grid, double quantization and adapter kind are fixed, so that the name says what was done. Any other adapter on a 4-bit base
goes through BNB4BIT. What may be chosen is how the base is rounded: to the nearest value, as the paper does, or with
calibration rows (tag `cal`), which leaves a better base to train on in the same format.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, QuantMethod, Stage, hookimpl
from quantkit.calibration import Calibration, QuantizationWork


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
        stages=frozenset({Stage.BASE}),
        requirements=("bitsandbytes>=0.50",),
        adapters=("LoRa",),
        calibration="optional",
    )


@hookimpl
def build_quantization_plan(options: QloraOptions, context: PlanContext) -> QuantizationPlan:
    """Plan an NF4 base with double quantization; DoRa and VeRa become LoRa, with a note."""
    adapter = context.adapter
    notes: tuple[str, ...] = ()
    if adapter.kind in ("DoRa", "VeRa"):
        notes = (f"QLORA trains LoRa adapters, not {adapter.kind}; for {adapter.kind} on a 4-bit base use BNB4BIT.",)
        adapter = replace(adapter, kind="LoRa")
    return QuantizationPlan(
        method=QuantMethod.QLORA,
        stage=context.stage,
        spec=QuantizationSpec(
            method=QuantMethod.QLORA,
            weights_bits=4,
            weights_dtype="nf4",
            format="bitsandbytes",
            double_quant=True,
            lm_head_dtype=context.head_dtype,
            tags=("cal",) if options.calibrated else (),
        ),
        adapter=adapter,
        options=asdict(options),
        compute_dtype=context.compute_dtype,
        optim="paged_adamw_32bit" if context.device == "cuda" else None,
        notes=notes,
    )


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
