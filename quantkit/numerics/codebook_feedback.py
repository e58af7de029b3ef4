"""How are weights rounded to NF4 so that a layer's outputs, not its weights, change least?

GPTQ's recursion (`error_feedback`) over the codebook, in three steps for each layer:

1. Codes c and absmax s by error feedback, s fitted to each block as the recursion reaches it, negative s allowed: it mirrors
   NF4, whose values are not symmetric about zero.
2. The joint absmax. With the codes fixed, a row's error (Σ_b s_b·c_b − w)·H·(…)ᵀ is a quadratic in its absmax numbers, so
   all of a row's are solved for at once: A·s = r with A_bb' = c_bᵀ·H_bb'·c_b' and r_b = c_bᵀ·(H·w)_b.
3. With double quantization (QLoRA, arXiv:2305.14314, section 3), s is rounded to its 8-bit code before anything is compared.
   Codes chosen anew for the rounded s, again by error feedback, are taken for each row in which they do better.

Output error on 21 layers of SmolLM2-135M, on the calibration rows themselves, plain NF4 = 100 %: after step 1 18.0 % (23.6 %
if s stays the largest magnitude, 19.5 % if it may not be negative), after step 2 17.5 %, after step 3 18.0 % (19.4 % if the s
of step 1 is rounded last). Fixing s before the recursion, as libraries do for integers, leaves it to the weights as they were
before compensation.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quantkit.numerics.codebooks import CodebookGrid, CodebookName, CodebookWeight, codebook
from quantkit.numerics.error_feedback import error_feedback
from quantkit.numerics.grids import Levels
from quantkit.numerics.hessian import quadratic_error

RIDGE = 1e-4
"""Share of each diagonal entry of A that is added to it, so that blocks whose inputs are all zero leave it invertible."""


@torch.no_grad()
def solve_codebook(
    weight: Tensor,
    hessian: Tensor,
    grid: CodebookGrid,
    *,
    double_quant: bool = False,
    damp_percent: float = 0.01,
    layer: str = "this layer",
) -> CodebookWeight:
    """Round a weight `[out, in]` to blocks of a codebook under the Hessian `[in, in]` of its inputs.

    Raises:
        UsageError: blocks of the grid do not divide the columns.
        QuantkitError: the Hessian is not finite or has no positive definite damping.
    """
    first = error_feedback(weight, hessian, grid, damp_percent=damp_percent, layer=layer).weight
    joint = replace(first, absmax=joint_absmax(weight, hessian, first.codes, first.absmax, grid.name))
    if not double_quant:
        return _better_rows(joint, first, weight, hessian)
    nested = joint.nest()
    levels = Levels(nested.absmax, None)
    again = error_feedback(weight, hessian, grid, damp_percent=damp_percent, levels=levels, layer=layer).weight
    return _better_rows(nested, replace(again, nested=nested.nested), weight, hessian)


@torch.no_grad()
def joint_absmax(weight: Tensor, hessian: Tensor, codes: Tensor, absmax: Tensor, name: CodebookName) -> Tensor:
    """Return the absmax `[out, blocks]` of least output error for these codes `[out, in]`.

    What is solved for is the change from the `absmax` given, so it stays where no output depends on it: a block whose codes
    are all zero, or that no input reaches.
    """
    rows, blocks = absmax.shape
    values = codebook(name).to(codes.device)[codes.long()].reshape(rows, blocks, -1)
    size = values.shape[-1]
    strips = hessian.reshape(blocks, size, blocks * size)
    matrix = torch.stack(
        [((values[:, block] @ strips[block]).view_as(values) * values).sum(-1) for block in range(blocks)], dim=1
    )
    missing = weight.float() - (values * absmax.unsqueeze(-1)).reshape(rows, -1)
    wanted = (values * (missing @ hessian).view_as(values)).sum(-1)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += torch.where(diagonal > 0, diagonal * RIDGE, 1.0)
    joint: Tensor = absmax + torch.linalg.solve(matrix, wanted)
    return joint


def _better_rows(one: CodebookWeight, other: CodebookWeight, weight: Tensor, hessian: Tensor) -> CodebookWeight:
    """Return a weight whose rows are those of least output error; only absmax that is not nested may differ."""
    errors = [quadratic_error(item.dequantize().float() - weight.float(), hessian) for item in (one, other)]
    better = (errors[1] < errors[0]).unsqueeze(1)
    return replace(
        one,
        codes=torch.where(better, other.codes, one.codes),
        absmax=torch.where(better, other.absmax, one.absmax),
    )
