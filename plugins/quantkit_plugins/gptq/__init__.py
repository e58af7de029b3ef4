"""How does one round a weight so that later columns make up for the errors of earlier ones? GPTQ (arXiv:2210.17323).

The hooks; what happens to a block stands in `solver`. Weights are stored as compressed-tensors, or in the GPTQ format.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, SETTING, IntegerOptions, integer_method, integer_plan


@dataclass(frozen=True)
class GptqOptions(IntegerOptions):
    """Settings of GPTQ."""

    format: Literal["compressed-tensors", "gptq"] = "compressed-tensors"
    """Checkpoint format: compressed-tensors loads with transformers alone, gptq where gptqmodel or vLLM is installed."""
    damp_percent: float = 0.01
    """Share of the Hessian's mean diagonal that is added to its diagonal."""
    desc_act: bool = False
    """Round the columns of the largest inputs first; the stored order stays the natural one, so inference costs nothing."""
    scale_search: Literal["mse", "minmax"] = "mse"
    """How a group's scale is chosen: the range of least squared error, or the whole range."""
    sequential: bool = True
    """Calibrate each block on what the quantized blocks before it put out; false: on what the original ones do."""
    true_sequential: bool = False
    """Within a block, too, calibrate each layer on the quantized layers before it; costs a run of the block per layer group."""
    equal_tokens: bool = True
    """Let every calibration token count alike, however large it is; false: as published, where huge first tokens decide."""

    fractions: ClassVar = ("damp_percent",)


@hookimpl
def declare_method() -> MethodInfo:
    """Declare GPTQ."""
    return integer_method(
        QuantMethod.GPTQ,
        "Integers in groups, rounded with error feedback under the inputs' second moments (GPTQ)",
        GptqOptions,
        paper="arXiv:2210.17323",
        takes=f"{BLOCKS} 52 {SETTING}, 32 × 256 tokens.",
        limits=(
            "At 4 bits llm-compressor's GPTQ had the lower perplexity (8.37 against 8.56) at nearly twice the KL from"
            " 16 bit (0.184 against 0.102)."
        ),
        calibration="required",
        claims=("gptq",),
    )


@hookimpl
def build_quantization_plan(options: GptqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. Tags name an asymmetric grid and the GPTQ format."""
    return integer_plan(QuantMethod.GPTQ, options, context)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Solve block by block and store the result in the plan's format."""
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
    from quantkit_plugins.gptq.solver import gptq_block

    options = plan.options
    grid = uniform_grid(plan.spec, model.dtype, search=options["scale_search"])

    def solve(block: Any) -> Any:
        return gptq_block(
            block,
            grid,
            damp_percent=options["damp_percent"],
            desc_act=options["desc_act"],
            true_sequential=options["true_sequential"],
            equal_tokens=options["equal_tokens"],
        )

    layers = solve_blocks(plan, model, calibration, work, solve, grid=grid, sequential=options["sequential"])
    return store_in_format(plan, model, layers)


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
