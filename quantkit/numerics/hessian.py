"""Which second moments of a layer's inputs does calibration leave behind?

H = 2/n·Σ xxᵀ over the n calibration tokens that reach the layer: the Hessian of the squared output error in each row of the
weight (GPTQ, arXiv:2210.17323, section 2). Layers that read the same tensor (q, k and v; gate and up) share one. Keeping
the inputs themselves would answer every later question but costs n × in numbers a layer; a sum costs in × in.
"""

import torch
from torch import Tensor


class HessianSum:
    """A running 2/n·Σ xxᵀ, float32 `[in, in]`."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(features, features, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Add tokens `[..., in]`."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.total.addmm_(rows.T, rows)
        self.tokens += len(rows)

    def value(self) -> Tensor:
        """Return H; all zero when no token came."""
        return self.total * (2 / max(self.tokens, 1))


def quadratic_error(delta: Tensor, hessian: Tensor) -> Tensor:
    """Return each row's δHδᵀ `[out]` for weight changes `[out, in]`: twice the mean squared change of that output."""
    return ((delta.float() @ hessian) * delta.float()).sum(1)
