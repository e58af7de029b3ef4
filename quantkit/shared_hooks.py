"""Which hooks are alike for several methods, and stand here once?

A plugin takes one by assignment (`prepare_model = shared_hooks.prepare_unpacked`), so that what a method does at each hook is
still read in its own module. A default for hooks that a plugin leaves out, the alternative, would take a forgotten hook for a
decision.
"""

from typing import TYPE_CHECKING, Any

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.hookspecs import hookimpl
from quantkit.plan import QuantizationPlan

if TYPE_CHECKING:
    from quantkit.numerics.grids import QuantizedWeight


@hookimpl
def prepare_unpacked(model: Any) -> Any:
    """Unpack the layers, so that gradients pass, and freeze the base."""
    from quantkit.quantizing import prepare_for_training

    return prepare_for_training(model)


@hookimpl
def fold_into_dense(model: Any) -> Any:
    """Fold the adapters into the dequantized base; the result is float32 and rounds no activations."""
    from quantkit.merging.fold import fold_adapters

    return fold_adapters(model)


@hookimpl
def round_to_nearest(plan: QuantizationPlan, model: Any, work: QuantizationWork) -> Any:
    """Round every linear layer but the head to the nearest level of its grid, block by block."""
    from quantkit.numerics.grids import quantize
    from quantkit.quantizing import solve_weights, store_in_format, uniform_grid

    grid = uniform_grid(plan.spec, model.dtype, search=plan.options.get("scale_search", "minmax"))

    def solve(name: str, linear: Any) -> "QuantizedWeight":
        return quantize(linear.weight.data.to(work.device), grid, layer=name)

    return store_in_format(plan, model, solve_weights(plan, model, work, solve, grid=grid))


@hookimpl
def prepare_bitsandbytes(model: Any) -> Any:
    """Freeze the base and keep bitsandbytes from repacking it."""
    from quantkit.backends import bitsandbytes

    return bitsandbytes.prepare_for_training(model)


@hookimpl
def load_4bit(plan: QuantizationPlan) -> dict[str, Any]:
    """Ask transformers to quantize by bitsandbytes while loading; a base to be calibrated is loaded dense."""
    from quantkit.backends import bitsandbytes

    return {} if plan.options["calibrated"] else bitsandbytes.load_kwargs_4bit(plan)


@hookimpl
def calibrate_4bit(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Round a dense base with calibration; without, return the model as it is: it was quantized while loading."""
    if not plan.options["calibrated"]:
        return model
    from quantkit.backends.calibrated_4bit import quantize_calibrated

    return quantize_calibrated(plan, model, calibration, work)
