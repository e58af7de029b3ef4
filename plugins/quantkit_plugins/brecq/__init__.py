"""Should the layers of a block be rounded one by one? BRECQ learns all of them together, from the block's output.

The hooks; the arithmetic stands in `solver`, with its source (arXiv:2102.05426).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, SETTING, IntegerOptions, integer_method, integer_plan


@dataclass(frozen=True)
class BrecqOptions(IntegerOptions):
    """Settings of BRECQ."""

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

    at_least_one: ClassVar = ("iterations", "batch_size")
    positive: ClassVar = ("rounding_learning_rate", "beta_start", "beta_end")
    not_negative: ClassVar = ("scale_learning_rate", "reg_weight", "seed")
    fractions: ClassVar = ("settling", "warmup", "asymmetric_reconstruction", "damp_percent")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare BRECQ."""
    return integer_method(
        QuantMethod.BRECQ,
        "Integers in groups, rounding of a block's layers learnt together from its output (BRECQ)",
        BrecqOptions,
        paper="arXiv:2102.05426",
        takes=f"{BLOCKS} 463 {SETTING}, 32 × 256 tokens.",
        limits="Nine times GPTQ's time; at 4 bits no nearer to 16 bit than AdaRound (KL 0.049 against 0.046).",
        calibration="required",
    )


@hookimpl
def build_quantization_plan(options: BrecqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense."""
    return integer_plan(QuantMethod.BRECQ, options, context)


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


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
