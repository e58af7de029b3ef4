"""How does one round a weight so that later columns make up for the errors of earlier ones? GPTQ (arXiv:2210.17323).

The hooks; what happens to a block stands in `solver`. Weights are stored as compressed-tensors, or in the GPTQ format.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, QuantMethod, Stage, UsageError, hookimpl
from quantkit.calibration import Calibration, QuantizationWork


@dataclass(frozen=True)
class GptqOptions:
    """Settings of GPTQ."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight."""
    group_size: int = 128
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool = True
    """Grid without zero points; false: each group has one, at a cost of as many bits as a weight."""
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

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"group_size is {self.group_size}; it must be a number of columns, or -1 for the whole row")
        if not 0 <= self.damp_percent <= 1:
            raise UsageError(f"damp_percent is {self.damp_percent}; it is a fraction from 0 to 1 (0.01 is usual)")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare GPTQ."""
    return MethodInfo(
        name=QuantMethod.GPTQ,
        summary="Integers in groups, rounded with error feedback under the inputs' second moments (GPTQ)",
        options=GptqOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
        calibration="required",
        claims=("gptq",),
    )


@hookimpl
def build_quantization_plan(options: GptqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. Tags name an asymmetric grid and the GPTQ format."""
    from quantkit.backends.vllm_rules import check_servable

    tags = (() if options.symmetric else ("asym",)) + (() if options.format == "compressed-tensors" else (options.format,))
    spec = QuantizationSpec(
        method=QuantMethod.GPTQ,
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format=options.format,
        group_size=options.group_size,
        symmetric=options.symmetric,
        lm_head_dtype=context.head_dtype,
        tags=tags,
    )
    return context.plan(spec, options, notes=check_servable(spec, context.model_config))


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
