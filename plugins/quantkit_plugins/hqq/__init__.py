"""How good can a grid be without any data? HQQ fits it to most of the weights and lets outliers be outliers.

The hooks; the arithmetic stands in `solver`, with its source.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, QuantMethod, Stage, UsageError, hookimpl
from quantkit.calibration import QuantizationWork


@dataclass(frozen=True)
class HqqOptions:
    """Settings of HQQ."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight."""
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

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"group_size is {self.group_size}; it must be a number of columns, or -1 for the whole row")
        if self.iterations < 1:
            raise UsageError(f"iterations is {self.iterations}; at least 1 step is needed")
        if not 0 < self.lp_norm <= 2:
            raise UsageError(f"lp_norm is {self.lp_norm}; it must be above 0 and at most 2 (2 is least squares)")
        for name in ("beta", "kappa"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a positive number")
            if self.lp_norm == 2 and getattr(self, name) != getattr(HqqOptions, name):
                raise UsageError(
                    f"{name} is set, but lp_norm 2 is plain least squares, which splits nothing; set lp_norm below 2"
                )


@hookimpl
def declare_method() -> MethodInfo:
    """Declare HQQ."""
    return MethodInfo(
        name=QuantMethod.HQQ,
        summary="Integers in groups, scale and zero point fitted to the weights alone; no calibration (HQQ)",
        options=HqqOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
        claims=("hqq",),
    )


@hookimpl
def build_quantization_plan(options: HqqOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense. A tag names a symmetric grid, which is not HQQ's usual one."""
    from quantkit.backends.vllm_rules import check_servable

    spec = QuantizationSpec(
        method=QuantMethod.HQQ,
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format="compressed-tensors",
        group_size=options.group_size,
        symmetric=options.symmetric,
        lm_head_dtype=context.head_dtype,
        tags=("sym",) if options.symmetric else (),
    )
    return context.plan(spec, options, notes=check_servable(spec, context.model_config))


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
def prepare_model(model: Any) -> Any:
    """Make the base ready to carry adapters."""
    from quantkit.quantizing import prepare_for_training

    return prepare_for_training(model)


@hookimpl
def post_train_merge(model: Any) -> Any:
    """Fold the adapters into the dequantized base; the result is float32."""
    from quantkit.merging import fold_adapters

    return fold_adapters(model)
