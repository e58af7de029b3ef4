"""What is SmoothQuant here? Int8 weights and activations, after large activation channels were scaled down (arXiv:2211.10438).

Weights have one scale per row, activations are rounded per token while the model runs; the result is an ordinary
compressed-tensors `int-quantized` checkpoint, the layout that int8 kernels want. Factors go into norms only, or into every
place where that is exact; nothing is left to do at run time.
"""

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, UsageError, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, SERVED_W8A8, integer_method, integer_plan


@dataclass(frozen=True)
class SmoothQuantOptions:
    """Settings of SmoothQuant; weights and activations have 8 bits."""

    alpha: float | Literal["search"] = 0.5
    """Share of the difficulty that moves into the weights, 0 to 1; `search`: the best one for each group of layers."""
    fold_into: Literal["norms", "all"] = "all"
    """Where factors may go: into norms only, as in the paper, or also into the layers before attention output and down
    projection, where that is exact."""

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, str) and not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"alpha is {self.alpha}; it must be between 0 and 1, or 'search'")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare SmoothQuant."""
    return integer_method(
        QuantMethod.SMOOTH_QUANT,
        "Int8 weights and activations, after smoothing out large activation channels",
        SmoothQuantOptions,
        paper="arXiv:2211.10438",
        takes=BLOCKS,
        served=SERVED_W8A8,
        limits=(
            "8 bits only. Factors go where they fold into a norm or layer exactly; a block where nothing folds is refused."
        ),
        calibration="required",
    )


@hookimpl
def build_quantization_plan(options: SmoothQuantOptions, context: PlanContext) -> QuantizationPlan:
    """Plan W8A8: int8 weights with one scale per row, activations rounded per token; the head stays dense."""
    return integer_plan(
        QuantMethod.SMOOTH_QUANT, options, context, weights_bits=8, group_size=-1, symmetric=True, activations_bits=8
    )


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Smooth and round block by block."""
    from quantkit.numerics.capture import Block
    from quantkit.numerics.graph import fold_sites
    from quantkit.numerics.grids import QuantizedWeight
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
    from quantkit_plugins.smoothquant.solver import smooth_block

    grid = uniform_grid(plan.spec, model.dtype)

    def solve(block: Block) -> dict[str, QuantizedWeight]:
        sites = [site for site in fold_sites(block) if site.kind == "norm" or plan.options["fold_into"] == "all"]
        if not sites:
            raise UsageError(
                f"{block.name}: no norm feeds linear layers only, so there is nothing that smoothing could be folded into;"
                " SmoothQuant does not fit this model"
            )
        return smooth_block(block, sites, grid, alpha=plan.options["alpha"], activations_bits=8)

    return store_in_format(plan, model, solve_blocks(plan, model, calibration, work, solve, grid=grid, reference=True))


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
