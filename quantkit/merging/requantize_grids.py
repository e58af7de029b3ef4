"""On which grid are the weights of a base, and how is a weight on it stored in the base's own format?

Read off the spec, which says what weights are; the method's name is not asked, so a plugin's method on a known grid is merged
like ours. A table of methods here would have to know each plugin.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from quantkit.numerics.codebook_feedback import solve_codebook
from quantkit.numerics.codebooks import CodebookGrid
from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.float8 import Float8Grid
from quantkit.numerics.grids import UniformGrid
from quantkit.numerics.soft_rounding import refit_scales
from quantkit.plan import QuantizationPlan


@dataclass(frozen=True, slots=True)
class Stored:
    """A grid, a first rounding to it, and how the result goes into a model."""

    grid: Any
    """`quantkit.numerics.error_feedback.Grid`, with `restore`."""
    start: Callable[[Tensor, Tensor, str], Any]
    """(target `[out, in]`, damped Hessian `[in, in]`, layer's name) → weight."""
    store: Callable[[Any, Mapping[str, Any]], Any]
    """(model, name → weight) → model, ready for `save_pretrained`."""


def stored_grid(plan: QuantizationPlan, dtype: torch.dtype) -> Stored | None:
    """Return the grid of a plan's weights with scales in `dtype`; None where the spec names none that is known here."""
    from quantkit.quantizing import store_in_format

    spec = plan.spec

    def store(model: Any, layers: Mapping[str, Any]) -> Any:
        return store_in_format(plan, model, layers)

    if spec.format == "bitsandbytes":
        return _codebook(plan, dtype) if spec.weights_dtype in ("nf4", "fp4") else _int8_rows(plan)
    if spec.format not in ("compressed-tensors", "gptq", "awq"):
        return None
    if spec.weights_dtype == "float8_e4m3fn":
        return Stored(Float8Grid(dtype), _feedback(Float8Grid(dtype)), store)
    if spec.weights_dtype != f"int{spec.weights_bits}":
        return None
    from quantkit.quantizing import uniform_grid

    grid = uniform_grid(spec, dtype, search="mse")

    def start(target: Tensor, hessian: Tensor, layer: str) -> Any:
        found = error_feedback(target, hessian, grid, damp_percent=0.0, desc_act=True, layer=layer).weight
        return refit_scales(target, hessian, found, grid)

    return Stored(grid, start, store)


def _codebook(plan: QuantizationPlan, dtype: torch.dtype) -> Stored:
    """Return NF4 or FP4 in blocks of 64, absmax double quantized where the spec says so."""
    from quantkit.backends.calibrated_4bit import store_layers

    spec = plan.spec
    grid = CodebookGrid(cast(Any, spec.weights_dtype), dtype=dtype, search="mse")

    def start(target: Tensor, hessian: Tensor, layer: str) -> Any:
        return solve_codebook(target, hessian, grid, double_quant=spec.double_quant, damp_percent=0.0, layer=layer)

    def store(model: Any, layers: Mapping[str, Any]) -> Any:
        return store_layers(plan, model, layers)

    return Stored(grid, start, store)


def _int8_rows(plan: QuantizationPlan) -> Stored:
    """Return the int8 codes of LLM.int8, one float32 scale a row."""
    from quantkit.backends.int8_rows import store_int8

    grid = UniformGrid(bits=8, group_size=-1, scale_dtype=torch.float32)

    def store(model: Any, layers: Mapping[str, Any]) -> Any:
        return store_int8(model, layers, threshold=float(plan.options.get("llm_int8_threshold", 6.0)))

    return Stored(grid, _feedback(grid), store)


def _feedback(grid: Any) -> Callable[[Tensor, Tensor, str], Any]:
    def start(target: Tensor, hessian: Tensor, layer: str) -> Any:
        return error_feedback(target, hessian, grid, damp_percent=0.0, layer=layer).weight

    return start
