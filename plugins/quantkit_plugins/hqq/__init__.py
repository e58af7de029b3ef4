"""How good can a grid be without any data? HQQ fits it to most of the weights and lets outliers be outliers.

The hooks; the arithmetic stands in `solver`, with its source.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, UsageError, hookimpl, shared_hooks
from quantkit.calibration import QuantizationWork
from quantkit.integer_plans import SETTING, IntegerOptions, integer_method, integer_plan

if TYPE_CHECKING:
    from quantkit.exporting.answers import Row


@dataclass(frozen=True)
class HqqOptions(IntegerOptions):
    """Settings of HQQ."""

    group_size: int = 64
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool = False
    """Grid without zero points: smaller, and served by more kernels, but less exact."""
    iterations: int = 5
    """Steps from the best range found."""
    lp_norm: float = 2.0
    """Exponent p of the error that is minimised: 2 is least squares; below 1, large errors hardly count."""
    beta: float = 10.0
    """Weight of the splitting at the first step; only with lp_norm below 2."""
    kappa: float = 1.01
    """Factor by which that weight grows at each step; only with lp_norm below 2."""

    at_least_one: ClassVar = ("iterations",)
    positive: ClassVar = ("beta", "kappa")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lp_norm <= 2:
            raise UsageError(f"lp_norm is {self.lp_norm}; it must be above 0 and at most 2 (2 is least squares)")
        for name in ("beta", "kappa"):
            if self.lp_norm == 2 and getattr(self, name) != getattr(HqqOptions, name):
                raise UsageError(
                    f"{name} is set, but lp_norm 2 is plain least squares, which splits nothing; set lp_norm below 2"
                )


@hookimpl
def declare_method() -> MethodInfo:
    """Declare HQQ."""
    return integer_method(
        QuantMethod.HQQ,
        "Integers in groups, scale and zero point fitted to the weights alone; no calibration (HQQ)",
        HqqOptions,
        paper="https://mobiusml.github.io/hqq_blog",
        takes=f"The weights alone: 13 {SETTING}.",
        limits=(
            "Zero points are integers, as common formats store them: hqq's own, real-valued ones had less KL at 4 bits"
            " (0.194 against 0.341), more at 3 (2.10 against 1.08)."
        ),
        claims=("hqq",),
    )


@hookimpl
def build_quantization_plan(options: HqqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. A tag names a symmetric grid, which is not HQQ's usual one."""
    return integer_plan(QuantMethod.HQQ, options, context)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, work: QuantizationWork) -> Any:
    """Fit every linear layer's grid and store the result."""
    from quantkit.numerics.grids import QuantizedWeight
    from quantkit.quantizing import solve_weights, store_in_format, uniform_grid
    from quantkit_plugins.hqq.solver import half_quadratic

    grid = uniform_grid(plan.spec, model.dtype)
    settings = {name: plan.options[name] for name in ("iterations", "lp_norm", "beta", "kappa")}

    def solve(name: str, linear: Any) -> QuantizedWeight:
        return half_quadratic(linear.weight.data.to(work.device), grid, layer=name, **settings)

    return store_in_format(plan, model, solve_weights(plan, model, work, solve, grid=grid))


@hookimpl
def declare_exports() -> "dict[str, Row]":
    """Say what becomes of the hqq library's own checkpoints, which hold real-valued zero points."""
    from quantkit.exporting.answers import Row, from_parent, route

    answers = {
        "transformers": route(
            "no",
            "`HqqConfig` raises NotImplementedError in transformers 5.23. `quantkit quantize --method HQQ` of the 16-bit model"
            " stores a standard format.",
            "measured: hqq 0.2, transformers 5.23",
        ),
        "dense": route("lossy", "Load it with hqq and save the dequantized weights; rounded to the data type.", "hqq 0.2"),
        "vllm": route(
            "no",
            "vLLM's reader of it is proposed for removal. Serve what `quantkit quantize --method HQQ` makes.",
            "https://github.com/vllm-project/vllm/issues/30136",
        ),
        "gguf": route(
            "lossy",
            "Dequantize it with hqq, then `quantkit export FOLDER --to gguf`.",
            "https://github.com/ggml-org/llama.cpp/issues/10965",
        ),
        "awq": from_parent("HQQ", "; then `--to awq`"),
        "gptq": from_parent("HQQ", "; then `--to gptq`"),
        "compressed-tensors": from_parent("HQQ"),
    }
    return {"hqq": Row(title="hqq's own checkpoints", answers=answers)}


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
