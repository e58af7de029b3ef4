"""How does a solver of one block become a quantized model that any loader reads?

What every block-wise method does around its own arithmetic stands here once: batches from the calibration, which layers
stay dense, blocks kept for resuming, the storage format. A plugin brings options and a solver. The alternative, a loop over
layers in each method, gives each its own idea of resuming, ignoring and error reporting.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import UsageError
from quantkit.plan import QuantizationPlan
from quantkit.spec import QuantizationSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quantkit.numerics.blockwise import BlockStore, Solver
    from quantkit.numerics.grids import QuantizedWeight, ScaleSearch, UniformGrid


class Grid(Protocol):
    """The levels that weights are rounded to, as far as keeping them needs to know."""

    def restore(self, tensors: "Mapping[str, torch.Tensor]") -> "QuantizedWeight":
        """Return the weight that these tensors state."""
        ...


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
    rows_per_batch: int = 8,
) -> "dict[str, QuantizedWeight]":
    """Run `solve` on every decoder block; return name → quantized weight, the model holding the dequantized ones.

    Raises:
        UsageError: there is no calibration, a layer cannot be quantized, or `work.folder` belongs to another run.
        QuantkitError: a solver left a layer out, or a block's output is not finite.
    """
    from quantkit.numerics.blockwise import quantize_blocks

    if calibration is None:
        raise UsageError(f"{plan.method} quantizes with calibration data; none was given")
    store = _store(plan, work, grid.restore, calibration=calibration.fingerprint)
    return quantize_blocks(
        model,
        calibration.batches(rows_per_batch),
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
    if plan.spec.format == "torchao":
        from quantkit.backends.torchao import store_torchao

        return store_torchao(model, layers, plan.spec)
    raise UsageError(f"{plan.method}: no layers can be stored in the format {plan.spec.format!r}")


def solve_weights(
    plan: QuantizationPlan,
    model: Any,
    work: QuantizationWork,
    solve: "Callable[[str, nn.Linear], QuantizedWeight]",
    *,
    grid: "Grid",
) -> "dict[str, QuantizedWeight]":
    """Run `solve` on name and linear layer of every decoder block; return name → quantized weight, the model as it was.

    For methods that look at weights only. Finished blocks are kept and reported as by `solve_blocks`.

    Raises:
        UsageError: a layer cannot be quantized and is not ignored, or `work.folder` belongs to another run.
    """
    from quantkit.numerics.blockwise import BlockReport

    store = _store(plan, work, grid.restore)
    if store is not None:
        store.open()
    finished: dict[str, QuantizedWeight] = {}
    blocks = list(_linears_by_block(model, work))
    for index, (name, linears) in enumerate(blocks):
        started = time.monotonic()
        known = None if store is None or not linears else store.load(index)
        if known is not None and set(known[0]) != set(linears):
            raise UsageError(f"the stored {name} has other layers than the model; remove {work.folder}")
        layers = {key: solve(key, layer) for key, layer in linears.items()} if known is None else known[0]
        if store is not None and known is None and layers:
            store.save(index, layers, {})
        finished |= layers
        work.report(BlockReport(name, index, len(blocks), None, time.monotonic() - started, resumed=known is not None))
    return finished


def _store(
    plan: QuantizationPlan,
    work: QuantizationWork,
    restore: "Callable[[Mapping[str, torch.Tensor]], QuantizedWeight]",
    *,
    calibration: str | None = None,
) -> "BlockStore[QuantizedWeight] | None":
    """Return where finished blocks are kept, under everything that determines them; None where nothing is kept."""
    from quantkit.numerics.blockwise import BlockStore

    if work.folder is None:
        return None
    settings = {
        "method": plan.method,
        "options": dict(plan.options),
        "spec": plan.spec.to_dict(),
        "model": work.identity,
        "calibration": calibration,
        "ignore": list(work.ignore),
    }
    return BlockStore(work.folder, settings, restore)


def _linears_by_block(model: Any, work: QuantizationWork) -> "Iterator[tuple[str, dict[str, nn.Linear]]]":
    from quantkit.layers import linear_layers
    from quantkit.numerics.capture import find_blocks, matches

    list_name, modules = find_blocks(model)
    found = {name: layer for name, layer in linear_layers(model).items() if not matches(name, work.ignore)}
    _require_linear(found)
    outside = [name for name in found if not name.startswith(f"{list_name}.")]
    if outside:
        raise UsageError(f"{outside[0]} stands outside the decoder blocks; put it on the ignore list")
    for index in range(len(modules)):
        name = f"{list_name}.{index}"
        yield name, {key: layer for key, layer in found.items() if key.startswith(f"{name}.")}


def prepare_for_training(model: Any) -> Any:
    """Make a quantized base ready to carry adapters: packed layers become dense ones on their grid, and nothing is trained."""
    from quantkit.backends.unpacked import unpack_model

    return unpack_model(model).requires_grad_(False)


def _require_linear(layers: "Mapping[str, Any]") -> None:
    from torch import nn

    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            raise UsageError(
                f"{name} is a {type(layer).__name__}, which cannot be quantized; put it on the ignore list (--ignore {name})"
            )
