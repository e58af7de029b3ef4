"""How is a model run in the middle of its training without a trace of it? In eval mode, but for what cannot bear it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Put a model into eval mode within; its modes are as before afterwards.

    Linear layers stay in training mode: bitsandbytes repacks 4-bit weights in an eval-mode forward pass on a CPU, and
    gradients no longer pass through them.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        if isinstance(module, torch.nn.Linear):
            module.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
