"""What does torchao's integer rounding cost, in its own checkpoints? For PyTorch's own kernels and compiler.

Round-to-nearest as RTN does it; what differs is the format, which plain transformers reads with torchao installed. The file is
called after the library and imports it in its hooks only.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, MethodNotes, PlanContext, QuantizationPlan, QuantizationSpec, Stage, hookimpl, shared_hooks
from quantkit.calibration import QuantizationWork
from quantkit.integer_plans import check_group_size

IN_BYTES = "torchao stores each 4-bit code in a byte: the checkpoint is as large as with weights_bits 8."
GROUP_SIZE_4BIT = 64


@dataclass(frozen=True)
class TorchaoOptions:
    """Settings of TorchAO."""

    weights_bits: Literal[4, 8] = 8
    """Bits of one weight."""
    group_size: int | None = None
    """Input columns that share one scale; -1: one scale per output row; none: -1 with 8 bits, 64 with 4."""

    def __post_init__(self) -> None:
        check_group_size(self.group_size)


@hookimpl
def declare_method() -> MethodInfo:
    """Declare TorchAO."""
    return MethodInfo(
        name="TorchAO",
        summary="Round-to-nearest integers in torchao's format, weights only; no calibration",
        options=TorchaoOptions,
        notes=MethodNotes(
            takes="The weights alone.",
            served="torchao's own kernels and compiler, in transformers with torchao; vLLM reads its checkpoints.",
            limits="Each 4-bit code takes a byte.",
        ),
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("torchao>=0.18",),
        adapters=("LoRa", "DoRa", "VeRa"),
        claims=("torchao",),
    )


@hookimpl
def build_quantization_plan(options: TorchaoOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights; the head stays dense."""
    usual = -1 if options.weights_bits == 8 else GROUP_SIZE_4BIT
    spec = QuantizationSpec(
        method="TorchAO",
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format="torchao",
        group_size=usual if options.group_size is None else options.group_size,
        symmetric=True,
        lm_head_dtype=context.head_dtype,
    )
    return context.plan(spec, options, notes=(IN_BYTES,) if options.weights_bits == 4 else ())


@hookimpl
def load_kwargs(plan: QuantizationPlan) -> dict[str, Any]:
    """Ask transformers to quantize the base of a run while loading it."""
    from quantkit.backends import torchao

    return torchao.load_kwargs(plan) if plan.stage is Stage.BASE else {}


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, work: QuantizationWork) -> Any:
    """Quantize a finished model block by block; a base was quantized while loading."""
    if plan.stage is Stage.BASE:
        return model
    from quantkit.backends.torchao import round_weight
    from quantkit.numerics.grids import QuantizedWeight
    from quantkit.quantizing import solve_weights, store_in_format, uniform_grid

    def solve(name: str, linear: Any) -> QuantizedWeight:
        return round_weight(linear.weight.data.to(work.device), plan.spec, layer=name)

    layers = solve_weights(plan, model, work, solve, grid=uniform_grid(plan.spec, model.dtype))
    return store_in_format(plan, model, layers)


@hookimpl
def prepare_model(model: Any) -> Any:
    """Freeze the base."""
    return model.requires_grad_(False)


post_train_merge = shared_hooks.fold_into_dense
