"""Should a weight be rounded down or up? AdaRound learns it, layer by layer, from the layer's output (arXiv:2004.10568).

The hooks; the arithmetic of a layer stands in `solver`, what a block's layers see in `block`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, SETTING, IntegerOptions, integer_method, integer_plan


@dataclass(frozen=True)
class AdaRoundOptions(IntegerOptions):
    """Settings of AdaRound."""

    start: Literal["gptq", "nearest"] = "gptq"
    """What learning starts from: error feedback (GPTQ), or the nearest levels, as in the paper."""
    iterations: int = 20
    """Steps of Adam on each layer, each over all calibration tokens; the paper takes 10000 on mini-batches."""
    rounding_learning_rate: float = 0.1
    """Step size of Adam on V."""
    reg_weight: float = 100.0
    """Weight of the regulariser that makes codes decide; losses are scaled to rounding noise, so it fits all layers."""
    beta_start: float = 20.0
    """Exponent of the regulariser when it sets in."""
    beta_end: float = 2.0
    """Exponent of the regulariser at the end."""
    warmup: float = 0.2
    """Share of the steps before the regulariser sets in."""
    asymmetric_reconstruction: float = 0.5
    """How far to aim from a layer's output on the quantized model's inputs (0) to that on the original's (1, as published)."""
    equal_tokens: bool = True
    """Let every calibration token count alike, however large it is; false: as published, where huge first tokens decide."""
    refit_scales: bool = True
    """Fit the scales to the codes, by least squares on the outputs, before and after learning; the paper holds them."""
    sweeps: int = 2
    """Passes of coordinate descent over the columns after learning; the paper has none (0)."""
    damp_percent: float = 0.01
    """Share of the Hessian's mean diagonal that is added to its diagonal."""

    at_least_one: ClassVar = ("iterations",)
    positive: ClassVar = ("rounding_learning_rate", "beta_start", "beta_end")
    not_negative: ClassVar = ("reg_weight", "sweeps")
    fractions: ClassVar = ("warmup", "damp_percent", "asymmetric_reconstruction")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare AdaRound."""
    return integer_method(
        QuantMethod.ADA_ROUND,
        "Integers in groups, rounding down or up learnt from each layer's output (AdaRound)",
        AdaRoundOptions,
        paper="arXiv:2004.10568",
        takes=f"{BLOCKS} 233 {SETTING}, 32 × 256 tokens.",
        limits="Four to five times GPTQ's time for half its KL at 4 bits (0.046 against 0.102).",
        calibration="required",
    )


@hookimpl
def build_quantization_plan(options: AdaRoundOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense."""
    return integer_plan(QuantMethod.ADA_ROUND, options, context)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Learn each layer's rounding, block by block, and store the result."""
    from quantkit.numerics.soft_rounding import Annealing
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
    from quantkit_plugins.adaround.block import round_block
    from quantkit_plugins.adaround.solver import Settings

    options = plan.options
    grid = uniform_grid(plan.spec, model.dtype, search="mse")
    settings = Settings(
        annealing=Annealing(options["iterations"], options["beta_start"], options["beta_end"], options["warmup"]),
        start=options["start"],
        learning_rate=options["rounding_learning_rate"],
        reg_weight=options["reg_weight"],
        damp_percent=options["damp_percent"],
        refit=options["refit_scales"],
        sweeps=options["sweeps"],
        asymmetry=options["asymmetric_reconstruction"],
    )

    def solve(block: Any) -> Any:
        return round_block(block, grid, settings, equal_tokens=options["equal_tokens"])

    layers = solve_blocks(plan, model, calibration, work, solve, grid=grid, reference=True)
    return store_in_format(plan, model, layers)


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
