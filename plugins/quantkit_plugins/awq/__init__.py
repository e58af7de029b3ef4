"""Which weights matter most? Those that meet large inputs: AWQ scales them up before rounding (arXiv:2306.00978).

The hooks; what happens to a block stands in `solver`. Weights are stored as compressed-tensors, or in the AWQ format.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, QuantMethod, Stage, UsageError, hookimpl
from quantkit.calibration import Calibration, QuantizationWork


@dataclass(frozen=True)
class AwqOptions:
    """Settings of AWQ."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight; the AWQ format holds 4."""
    group_size: int = 128
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool | None = None
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

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"group_size is {self.group_size}; it must be a number of columns, or -1 for the whole row")
        if self.n_grid < 1:
            raise UsageError(f"n_grid is {self.n_grid}; at least 1 exponent must be tried (20 is usual)")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare AWQ."""
    return MethodInfo(
        name=QuantMethod.AWQ,
        summary="Integers in groups, channels that meet large inputs scaled up before rounding (AWQ)",
        options=AwqOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
        calibration="required",
        claims=("awq",),
    )


@hookimpl
def build_quantization_plan(options: AwqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. Tags name an asymmetric grid and the AWQ format."""
    from quantkit.backends.vllm_rules import check_servable

    symmetric = options.format != "awq" if options.symmetric is None else options.symmetric
    tags = (() if symmetric else ("asym",)) + (() if options.format == "compressed-tensors" else (options.format,))
    spec = QuantizationSpec(
        method=QuantMethod.AWQ,
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format=options.format,
        group_size=options.group_size,
        symmetric=symmetric,
        lm_head_dtype=context.head_dtype,
        tags=tags,
    )
    return context.plan(spec, options, notes=check_servable(spec, context.model_config))


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


@hookimpl
def prepare_model(model: Any) -> Any:
    """Make the base ready to carry adapters."""
    from quantkit.quantizing import prepare_for_training

    return prepare_for_training(model)


@hookimpl
def post_train_merge(model: Any) -> Any:
    """Fold the adapters into the dequantized base; the result is float32."""
    from quantkit.merging import fold_adapters

    return fold_adapters(model)
