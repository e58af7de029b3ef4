"""Should the layers of a block be rounded one by one? BRECQ learns all of them together, from the block's output.

The hooks; the arithmetic stands in `solver`, with its source (arXiv:2102.05426).
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, QuantMethod, Stage, UsageError, hookimpl
from quantkit.calibration import Calibration, QuantizationWork


@dataclass(frozen=True)
class BrecqOptions:
    """Settings of BRECQ."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight."""
    group_size: int = 128
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool = True
    """Grid without zero points; false: each group has one, at a cost of as many bits as a weight."""
    start: Literal["gptq", "nearest"] = "gptq"
    """What learning starts from: error feedback (GPTQ), or the nearest levels, as in the paper."""
    iterations: int = 64
    """Steps of Adam on each block, each over one batch of calibration rows; the paper takes 20000."""
    batch_size: int = 4
    """Calibration rows in a step."""
    rounding_learning_rate: float = 0.2
    """Step size of Adam on V."""
    scale_learning_rate: float = 0.02
    """Step size of Adam on the logarithms of the scales, falling to zero; 0 holds the scales, as in the paper."""
    settling: float = 0.25
    """Further steps, as a share of the iterations, on the scales alone once all codes are decided."""
    reg_weight: float = 10.0
    """Weight of the regulariser that makes codes decide; losses are scaled to the start's error, so it fits all blocks."""
    beta_start: float = 20.0
    """Exponent of the regulariser when it sets in."""
    beta_end: float = 2.0
    """Exponent of the regulariser at the end."""
    warmup: float = 0.2
    """Share of the steps before the regulariser sets in."""
    refit_scales: bool = True
    """Fit the start's scales to its codes, by least squares on each layer's outputs; the paper holds them."""
    asymmetric_reconstruction: float = 0.5
    """How far a layer's start aims from its output on the quantized model's inputs (0) to that on the original's (1)."""
    damp_percent: float = 0.01
    """Share of the Hessian's mean diagonal that is added to its diagonal."""
    equal_tokens: bool = True
    """Let every calibration token count alike, however large it is; false: as published, where huge first tokens decide."""
    seed: int = 42
    """Decides in which order batches are drawn."""

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"group_size is {self.group_size}; it must be a number of columns, or -1 for the whole row")
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("rounding_learning_rate", "beta_start", "beta_end"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a positive number")
        for name in ("scale_learning_rate", "reg_weight", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or a positive number")
        for name in ("settling", "warmup", "asymmetric_reconstruction", "damp_percent"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it is a fraction from 0 to 1")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare BRECQ."""
    return MethodInfo(
        name=QuantMethod.BRECQ,
        summary="Integers in groups, rounding of a block's layers learnt together from its output (BRECQ)",
        options=BrecqOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
        calibration="required",
    )


@hookimpl
def build_quantization_plan(options: BrecqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. A tag names an asymmetric grid."""
    from quantkit.backends.vllm_rules import check_servable

    spec = QuantizationSpec(
        method=QuantMethod.BRECQ,
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format="compressed-tensors",
        group_size=options.group_size,
        symmetric=options.symmetric,
        lm_head_dtype=context.head_dtype,
        tags=() if options.symmetric else ("asym",),
    )
    return context.plan(spec, options, notes=check_servable(spec, context.model_config))


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Learn the rounding of each block, and store the result."""
    from quantkit.numerics.soft_rounding import Annealing
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
    from quantkit_plugins.brecq.solver import Settings, reconstruct_block

    options = plan.options
    grid = uniform_grid(plan.spec, model.dtype, search="mse")
    settings = Settings(
        annealing=Annealing(options["iterations"], options["beta_start"], options["beta_end"], options["warmup"]),
        start=options["start"],
        learning_rate=options["rounding_learning_rate"],
        scale_learning_rate=options["scale_learning_rate"],
        settling=options["settling"],
        reg_weight=options["reg_weight"],
        damp_percent=options["damp_percent"],
        refit=options["refit_scales"],
        asymmetry=options["asymmetric_reconstruction"],
        equal_tokens=options["equal_tokens"],
        seed=options["seed"],
    )

    def solve(block: Any) -> Any:
        return reconstruct_block(block, grid, settings)

    layers = solve_blocks(
        plan, model, calibration, work, solve, grid=grid, reference=True, rows_per_batch=options["batch_size"]
    )
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
