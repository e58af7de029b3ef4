"""What does plain rounding cost? Every weight becomes the nearest level of its group's grid: what better methods must beat.

Round-to-nearest needs no calibration text and seconds instead of minutes. For a group of columns with scale s and zero
point z, q = clamp(round(w/s) + z) and ŵ = (q − z)·s; s and z span the group's own range (`quantkit.numerics.grids`).
"""

from dataclasses import dataclass
from typing import Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, hookimpl, shared_hooks
from quantkit.integer_plans import SETTING, IntegerOptions, integer_method, integer_plan


@dataclass(frozen=True)
class RtnOptions(IntegerOptions):
    """Settings of RTN."""

    activations_bits: Literal[8] | None = None
    """8: each token's activations are rounded to 8 bits at run time (W8A8 with 8-bit rows); none: weights only."""


@hookimpl
def declare_method() -> MethodInfo:
    """Declare RTN."""
    return integer_method(
        "RTN",
        "Round-to-nearest integers in groups; no calibration",
        RtnOptions,
        takes=f"The weights alone: 1 {SETTING}.",
        limits="What others must beat: KL from 16 bit 0.488 where GPTQ has 0.102.",
    )


@hookimpl
def build_quantization_plan(options: RtnOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense."""
    return integer_plan("RTN", options, context)


quantize_model = shared_hooks.round_to_nearest
prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
