"""How does a solver of one block become a quantized model that any loader reads?

What every block-wise method does around its own arithmetic stands here once: batches from the calibration, which layers
stay dense, blocks kept for resuming, the storage format. A plugin brings options and a solver. The alternative, a loop over
layers in each method, gives each its own idea of resuming, ignoring and error reporting.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import UsageError
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec

if TYPE_CHECKING:
    import torch

    from quantkit.numerics.blockwise import Solver
    from quantkit.numerics.grids import QuantizedWeight, ScaleSearch, UniformGrid


def uniform_grid(spec: QuantizationSpec, scale_dtype: "torch.dtype", *, search: "ScaleSearch" = "minmax") -> "UniformGrid":
    """Return the integer grid that a spec describes."""
    from quantkit.numerics.grids import UniformGrid

    return UniformGrid(
        bits=spec.weights_bits,
        group_size=-1 if spec.group_size is None else spec.group_size,
        symmetric=spec.symmetric is not False,
        scale_dtype=scale_dtype,
        search=search,
    )


def solve_blocks(
    plan: QuantizationPlan,
    model: Any,
    calibration: Calibration | None,
    work: QuantizationWork,
    solve: "Solver[QuantizedWeight]",
    *,
    grid: "UniformGrid",
    reference: bool = False,
    sequential: bool = True,
) -> "dict[str, QuantizedWeight]":
    """Run `solve` on every decoder block; return name → quantized weight, the model holding the dequantized ones.

    Raises:
        UsageError: there is no calibration, a layer cannot be quantized, or `work.folder` belongs to another run.
        QuantkitError: a solver left a layer out, or a block's output is not finite.
    """
    from quantkit.numerics.blockwise import BlockStore, quantize_blocks

    if calibration is None:
        raise UsageError(f"{plan.method} quantizes with calibration data; none was given")
    store = None
    if work.folder is not None:
        settings = {
            "method": plan.method,
            "options": dict(plan.options),
            "spec": plan.spec.to_dict(),
            "model": work.identity,
            "calibration": calibration.fingerprint,
            "ignore": list(work.ignore),
        }
        store = BlockStore(work.folder, settings, grid.restore)
    return quantize_blocks(
        model,
        calibration.batches(),
        solve,
        device=work.device,
        ignore=work.ignore,
        reference=reference,
        sequential=sequential,
        store=store,
        report=work.report,
    )


def store_in_format(plan: QuantizationPlan, model: Any, layers: "Mapping[str, QuantizedWeight]") -> Any:
    """Put quantized weights into the model in the spec's storage format and return it, ready for `save_pretrained`.

    Raises:
        UsageError: the format is unknown, or cannot hold these weights.
    """
    if plan.spec.format == "compressed-tensors":
        from quantkit.backends.compressed_tensors import compress_model

        return compress_model(model, layers, activations_bits=plan.spec.activations_bits)
    if plan.spec.format == "gptq":
        from quantkit.backends.gptq_format import store_gptq

        return store_gptq(model, layers, options=plan.options)
    if plan.spec.format == "awq":
        from quantkit.backends.awq_format import store_awq

        return store_awq(model, layers)
    raise UsageError(f"{plan.method}: no layers can be stored in the format {plan.spec.format!r}")
