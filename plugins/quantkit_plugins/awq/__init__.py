"""Which weights matter most? Those that meet large inputs: AWQ scales them up before rounding (arXiv:2306.00978).

The hooks; what happens to a block stands in `solver`. Weights are stored as compressed-tensors, or in the AWQ format.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, SETTING, IntegerOptions, integer_method, integer_plan


@dataclass(frozen=True)
class AwqOptions(IntegerOptions):
    """Settings of AWQ."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight; the AWQ format holds 4."""
    symmetric: bool | None = None  # type: ignore[assignment]
    """Grid without zero points; not set: yes in compressed-tensors, no in the AWQ format, which has no other."""
    format: Literal["compressed-tensors", "awq"] = "compressed-tensors"
    """Checkpoint format: compressed-tensors loads with transformers alone, awq where gptqmodel or vLLM is installed."""
    n_grid: int = 20
    """Number of exponents alpha that are tried in the search for channel scales."""
    duo_scaling: bool = True
    """Let the weights' own sizes enter the channel scales beside the inputs': x^a / w^(1-a) instead of x^a."""
    apply_clip: bool = True
    """Search for each group how far to clip its range, after scaling."""
    equal_tokens: bool = True
    """Let every calibration token count alike, however large it is; false: as published, where huge first tokens decide."""

    at_least_one: ClassVar = ("n_grid",)


@hookimpl
def declare_method() -> MethodInfo:
    """Declare AWQ."""
    return integer_method(
        QuantMethod.AWQ,
        "Integers in groups, channels that meet large inputs scaled up before rounding (AWQ)",
        AwqOptions,
        paper="arXiv:2306.00978",
        takes=f"{BLOCKS} 128 {SETTING}, 32 × 256 tokens.",
        limits=(
            "Layers before which nothing can be scaled exactly stay unscaled and are named. The AWQ format holds 4"
            " bits with zero points."
        ),
        calibration="required",
        claims=("awq",),
    )


@hookimpl
def build_quantization_plan(options: AwqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. Tags name an asymmetric grid and the AWQ format."""
    symmetric = options.format != "awq" if options.symmetric is None else options.symmetric
    return integer_plan(QuantMethod.AWQ, options, context, symmetric=symmetric)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Scale, clip and round block by block, say what could not be scaled, and store the result in the plan's format."""
    from quantkit.console import warn
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
    from quantkit_plugins.awq.solver import awq_block, unscaled_layers

    options = plan.options
    grid = uniform_grid(plan.spec, model.dtype)
    left: dict[str, list[str]] = {}

    def solve(block: Any) -> Any:
        solved, unscaled = awq_block(
            block,
            grid,
            n_grid=options["n_grid"],
            duo_scaling=options["duo_scaling"],
            apply_clip=options["apply_clip"],
            equal_tokens=options["equal_tokens"],
        )
        left[block.name] = unscaled
        return solved

    layers = solve_blocks(plan, model, calibration, work, solve, grid=grid)
    if sentence := unscaled_layers(left):
        warn(sentence)
    return store_in_format(plan, model, layers)


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
