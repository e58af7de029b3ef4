"""How does a merged model become a quantized one again without losing what was learnt?

An update is much smaller than the step of a 4-bit grid, so rounding to the nearest level gives the base's own codes back. Here
the exactly merged weights are the target, and every layer is rounded on its base's grid for its *output* on rows of the run:
block by block, with error feedback, towards what the merged model gives at the same token (`quantkit.numerics.drift`), followed
by coordinate descent. Only the way to the codes differs: format, size and speed are those of the base.

Every method goes this way whose spec names a grid that is known here; what it did to the weights besides (smoothing, rotating)
is in the base already and is not searched for a second time. Any other method's own `quantize_model` is asked.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import UsageError
from quantkit.methods import Methods
from quantkit.plan import QuantizationPlan
from quantkit.storable import store_dense_as

if TYPE_CHECKING:
    from torch import Tensor

    from quantkit.merging.requantize_grids import Stored
    from quantkit.numerics.capture import Block

DAMP_PERCENT = 0.01
"""Share of each Hessian's mean diagonal that is added to it, as in GPTQ's paper."""
ASYMMETRY = 0.5
"""Share of the way from what a layer gives on its drifted input to what it gives on the original's that is aimed at. All of it
overshoots where few tokens decide much: on SmolLM2 the stream's relative error behind block 5 was 0.0031, 0.00014 at half."""
PASSES = 3
"""Passes of coordinate descent over a layer's codes."""
ROWS_PER_BATCH = 8


def requantize(
    model: Any,
    plan: QuantizationPlan,
    methods: Methods,
    calibration: Calibration | None,
    work: QuantizationWork | None = None,
    *,
    dtype: str | None = None,
) -> Any:
    """Quantize a merged dense float32 model in place by the plan of its base and return it, ready for `save_pretrained`.

    `calibration` are rows of the run, `dtype` the data type of what is dense in the result and of scales (default: that of the
    plan's output head). The result measures as the plan's spec says.

    Raises:
        UsageError: the plan's weights are dense, there is no calibration, or a layer cannot be quantized (it is named).
        VerificationError: the result is not what the spec says.
    """
    import torch

    from quantkit.measure import check_model
    from quantkit.merging.requantize_grids import stored_grid

    if not plan.spec.is_quantized:
        raise UsageError(f"{plan.method} trains on dense weights; there is nothing to quantize again: merge as 'dequantized'")
    if calibration is None:
        raise UsageError(f"requantizing a {plan.method} base rounds on rows of the run; none were given")
    dtype, work = dtype or plan.spec.lm_head_dtype, work or QuantizationWork()
    plan = plan.with_changes(compute_dtype=dtype)
    grid = stored_grid(plan, getattr(torch, dtype))
    if grid is None:
        options = {**plan.options, "calibrated": True} if "calibrated" in plan.options else plan.options
        model = methods.quantize_model(plan.with_changes(options=options), model.to(getattr(torch, dtype)), calibration, work)
    else:
        layers = _round(plan, model, calibration, work, grid)
        model = grid.store(model.to(getattr(torch, dtype)), layers)
    model = store_dense_as(model, dtype, lm_head_dtype=plan.spec.lm_head_dtype)
    check_model(model, plan.spec)
    return model


def _round(
    plan: QuantizationPlan, model: Any, calibration: Calibration, work: QuantizationWork, stored: "Stored"
) -> Mapping[str, Any]:
    from quantkit.quantizing import solve_blocks

    def solve(block: "Block") -> dict[str, Any]:
        return round_block(block, stored)

    return solve_blocks(
        plan,
        model,
        calibration,
        work,
        solve,
        grid=stored.grid,
        reference=True,
        rows_per_batch=ROWS_PER_BATCH,
    )


def round_block(block: "Block", stored: "Stored") -> dict[str, Any]:
    """Return name → weight on the grid for every layer of a block, each solved for the merged model's output."""
    from quantkit.numerics.drift import moved_target, original_block
    from quantkit.numerics.two_streams import all_paired_moments, damped

    groups = block.groups()
    solved = {}
    moments = all_paired_moments(block, original_block(block), groups)
    for names, (hessian, cross) in zip(groups, moments, strict=True):
        ridged = damped(hessian, DAMP_PERCENT)
        for name in names:
            target = moved_target(block.linears[name].weight.data.float(), hessian, cross, ridged, asymmetry=ASYMMETRY)
            solved[name] = round_layer(target, ridged, stored, layer=name)
    return solved


def round_layer(target: "Tensor", hessian: "Tensor", stored: "Stored", *, layer: str = "this layer") -> Any:
    """Return a target `[out, in]` rounded under a damped Hessian `[in, in]`."""
    from quantkit.numerics.descent import descend

    found = stored.start(target, hessian, layer)
    for _ in range(PASSES):
        found = descend(found, target, hessian, stored.grid)
    return found
